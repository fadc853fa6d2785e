"""Two machines on one: network namespaces, each with a name, an address and, if wanted, folders of its own."""
