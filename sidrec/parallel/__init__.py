"""Process group, sharding plan, sharded model: the only package that knows ranks and world sizes."""
