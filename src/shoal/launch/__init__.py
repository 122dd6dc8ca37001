"""Starting processes and ending them: head node, node process, zygote.

Reading order: `nodes` (the starter's side), `node_process` (what it spawns), `zygote` (what forks the workers), `gcs_process`. All facts that one
process tells the next are records of `system.start_plan`. `local_nodes` finds the nodes that run on this machine, `observer` asks one of them.
"""
