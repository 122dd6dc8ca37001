"""Thin wrappers of the operating system: processes, sockets, interpreters, session folders, secrets, machine facts.

Nothing here knows a task or an object. Linux only; `process.require_linux` says so elsewhere.
"""
