"""What any of our processes needs: run directory, locks, logs, signals of its end.

Internal: may change in any release.
"""
