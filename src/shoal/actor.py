"""Names of actors that programs import from here: `from shoal.actor import ActorHandle, exit_actor`."""

from shoal.api.actors import ActorClass, ActorHandle, exit_actor

__all__ = ["ActorClass", "ActorHandle", "exit_actor"]
