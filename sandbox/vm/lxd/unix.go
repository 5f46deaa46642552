// Package vsock reaches guests through unix sockets, which a vhost-user back end serves (../programs/vsock_backend.py).
// It never opens AF_VSOCK, so that LXD runs where the kernel has no vhost-vsock.
package vsock

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/mdlayher/vsock"
)

const hostCID = 2

func folder() string {
	path := os.Getenv("LXD_VSOCK_DIR")
	if path == "" {
		path = "/run/lxd-vsock"
	}

	return path
}

// readLine reads byte by byte, because what follows the line belongs to the caller of Dial or Accept.
func readLine(conn net.Conn) (string, error) {
	line := []byte{}
	one := make([]byte, 1)
	for len(line) < 64 {
		_, err := conn.Read(one)
		if err != nil {
			return "", err
		}

		if one[0] == '\n' {
			return string(line), nil
		}

		line = append(line, one[0])
	}

	return "", fmt.Errorf("line too long")
}

func dialUnix(cid, port uint32) (net.Conn, error) {
	conn, err := net.DialTimeout("unix", filepath.Join(folder(), fmt.Sprintf("%d.sock", cid)), time.Second)
	if err != nil {
		return nil, err
	}

	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	_, err = fmt.Fprintf(conn, "CONNECT %d\n", port)
	if err == nil {
		_, err = readLine(conn)
	}

	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("dial vm(%d):%d: connection refused (%w)", cid, port, err)
	}

	_ = conn.SetDeadline(time.Time{})
	return conn, nil
}

type unixListener struct {
	net.Listener
	port uint32
}

func listenUnix(port uint32) (net.Listener, error) {
	err := os.MkdirAll(folder(), 0700)
	if err != nil {
		return nil, err
	}

	// A daemon that was killed leaves its socket behind.
	path := filepath.Join(folder(), fmt.Sprintf("host-%d.sock", port))
	_ = os.Remove(path)
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}

	return &unixListener{Listener: listener, port: port}, nil
}

// Addr is the address that a vsock listener of the host has.
func (l *unixListener) Addr() net.Addr {
	return &vsock.Addr{ContextID: hostCID, Port: l.port}
}

// Accept waits for a guest's connection. Its first line, written by the back end, names the guest.
func (l *unixListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}

		var cid, port uint32
		line, err := readLine(conn)
		if err == nil {
			_, err = fmt.Sscanf(line, "FROM %d %d", &cid, &port)
		}

		if err != nil {
			_ = conn.Close()
			continue
		}

		return &guestConn{Conn: conn, remote: &vsock.Addr{ContextID: cid, Port: port}}, nil
	}
}

type guestConn struct {
	net.Conn
	remote net.Addr
}

// RemoteAddr is the guest's address, by which LXD recognises the instance.
func (c *guestConn) RemoteAddr() net.Addr {
	return c.remote
}
