"""Formats that cross a process or outlive one. Each carries a version; an unknown version is a miss, never a crash."""
