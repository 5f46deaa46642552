"""GitHub's published OpenAPI description, from the npm package @octokit/openapi, and checks against it."""

import json
import os
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from openapi_schema_validator import OAS30Validator, oas30_format_checker

PACKAGE, VERSION = "@octokit/openapi", "23.0.2"
MEMBER = "package/generated/api.github.com.json"


def fetch(cache: Path) -> Path:
    """The package's tarball of this version: from the cache, else by npm, which apt installs where it is missing."""
    target = cache / f"octokit-openapi-{VERSION}.tgz"
    if target.exists():
        return target
    if shutil.which("npm") is None:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise RuntimeError(f"npm is needed for {PACKAGE}, GitHub's API description: install npm")
        _run("apt-get", "-qq", "-y", "install", "--no-install-recommends", "npm")
    # A folder of its own, so that tests that run at the same time do not meet a file that is half there.
    folder = cache / f"openapi-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    try:
        _run("npm", "pack", "--silent", f"{PACKAGE}@{VERSION}", "--pack-destination", str(folder))
        next(folder.glob("*.tgz")).replace(target)
    finally:
        shutil.rmtree(folder)
    return target


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    if done.returncode != 0:
        raise RuntimeError(f"GitHub's API description cannot be fetched: {' '.join(command)}: {done.stderr[-2000:]}")


@dataclass(frozen=True)
class Operation:
    """One method of one path, without references."""

    template: str
    method: str
    document: dict[str, Any]

    @cached_property
    def queries(self) -> dict[str, Any]:
        """The schemas of the query's parameters."""
        return {each["name"]: each["schema"] for each in self.document.get("parameters", []) if each["in"] == "query"}

    @property
    def body(self) -> dict[str, Any] | None:
        """The schema of the request's body, if it may have one."""
        found: dict[str, Any] | None = (
            self.document.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
        )
        return found

    @property
    def wants_body(self) -> bool:
        """Whether a request without a body is wrong."""
        return bool(self.document.get("requestBody", {}).get("required"))


class Description:
    """The description of api.github.com."""

    def __init__(self, tarball: Path) -> None:
        with tarfile.open(tarball) as archive:
            file = archive.extractfile(MEMBER)
            assert file is not None
            self._document = json.load(file)
        self._operations: dict[tuple[str, str], Operation] = {}
        self._paths = [(re.compile(_pattern(template)), template) for template in self._document["paths"]]

    def operation(self, method: str, path: str) -> Operation | None:
        """The operation of a request; of several templates that match, the one with the fewest parameters."""
        fitting = [template for pattern, template in self._paths if pattern.fullmatch(path)]
        for template in sorted(fitting, key=lambda each: each.count("{")):
            found = self._document["paths"][template].get(method.lower())
            if found is not None:
                return self._known(template, method, found)
        return None

    def _known(self, template: str, method: str, document: dict[str, Any]) -> Operation:
        """An operation, whose references are followed only once."""
        if (template, method) not in self._operations:
            self._operations[template, method] = Operation(template, method, self._resolved(document))
        return self._operations[template, method]

    def request_errors(self, method: str, target: str, body: bytes = b"") -> list[str]:
        """What the description does not allow in a request."""
        parts = urlsplit(target)
        operation = self.operation(method, parts.path)
        if operation is None:
            return [f"{method} {parts.path} is not described"]
        errors = ["a body is missing"] if operation.wants_body and not body else []
        if operation.body is None and body not in (b"", b"{}"):  # an empty object says nothing
            errors.append(f"{operation.template} has no body")
        elif body and operation.body is not None:
            errors += _errors(operation.body, json.loads(body))
        for name, text in parse_qsl(parts.query, keep_blank_values=True):
            schema = operation.queries.get(name)
            if schema is None:
                errors.append(f"{operation.template} has no parameter {name}")
                continue
            value = int(text) if schema.get("type") == "integer" and text.isdecimal() else text
            errors += _errors(schema, value)
        return errors

    def answer_errors(self, operation: Operation, status: int, answer: Any) -> list[str]:
        """What the description does not allow in an answer."""
        described = operation.document["responses"].get(str(status))
        if described is None:
            if status < 400:
                return [f"{operation.template} has no answer {status}"]
            # Refusals that every operation may give are not repeated at each.
            return _errors(self._resolved({"$ref": "#/components/schemas/basic-error"}), answer)
        if status >= 400 and isinstance(answer, dict):  # every refusal has it, and few descriptions
            answer = {key: value for key, value in answer.items() if key != "status"}
        content = described.get("content", {}).get("application/json")
        if content is None:
            return [] if answer in (b"", None) else ["the answer has a body"]
        return _errors(content["schema"], answer)

    def _resolved(self, item: Any) -> Any:
        """The same without references and examples. An object has described properties only."""
        if isinstance(item, list):
            return [self._resolved(each) for each in item]
        if not isinstance(item, dict):
            return item
        if "$ref" in item:
            found: Any = self._document
            for key in item["$ref"].removeprefix("#/").split("/"):
                found = found[key]
            return self._resolved(found)
        result = {key: self._resolved(value) for key, value in item.items() if key not in ("example", "examples")}
        if result.get("nullable") and isinstance(result.get("enum"), list):
            result["enum"] = [*result["enum"], None]
        if isinstance(result.get("properties"), dict) and not {"allOf", "anyOf", "oneOf"} & set(result):
            result.setdefault("additionalProperties", False)
        return result


def _pattern(template: str) -> str:
    return "".join("[^/]+" if part.startswith("{") else re.escape(part) for part in re.split(r"(\{[^}]+\})", template))


def _errors(schema: dict[str, Any], value: Any) -> list[str]:
    validator = OAS30Validator(schema, format_checker=oas30_format_checker)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(value)]
