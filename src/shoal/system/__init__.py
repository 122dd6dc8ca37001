"""Thin wrappers of the operating system: processes, memory files, interpreters, session folders, machine facts.

Nothing here knows a task or an object. Linux only; `process.require_linux` says so elsewhere.
"""
