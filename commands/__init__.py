"""What ./build can do, one module for each command, and the modules that they share."""
