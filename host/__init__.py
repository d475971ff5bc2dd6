"""What runs on the VM, as text: pure functions from the settings to files."""
