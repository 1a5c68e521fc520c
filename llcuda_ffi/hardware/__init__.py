"""What this machine has: processors, GPUs, memory, the C library."""
