"""What `import shoal` shows: decorators, handles, sessions. Checks what users give, then hands it to the runtime.

Reading order: `verbs` (the functions), `remote_function` and `actors` (what `@remote` makes), `options` with `scheduling_strategies` and
`placement_groups` (what may be asked for), `session` with `init_options`. The others stand alone.
"""
