"""What `import shoal` shows: decorators, handles, sessions. Checks what users give, then hands it to the runtime."""
