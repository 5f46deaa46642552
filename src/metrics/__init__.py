"""What the jobs did, as events in a log that reaches Loki"""
