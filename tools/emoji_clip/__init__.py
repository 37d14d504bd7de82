"""The training of the embedded CLIPs: not part of the package."""
