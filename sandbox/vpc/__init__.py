"""What is around the machine: the network, its filter, and whom the machine asks there."""
