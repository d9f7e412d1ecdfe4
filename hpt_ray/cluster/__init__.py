"""Where actors live: start or join Ray, reserve room, create groups of actors, wait with limits."""
