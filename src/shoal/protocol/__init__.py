"""The shared language: ids, resources, messages, limits and errors.

Everything above imports this layer; it imports only `util`. It holds no behaviour beyond arithmetic on its own values.
"""
