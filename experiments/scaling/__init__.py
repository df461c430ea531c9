"""What a step needs on many chips: communication, memory, time; without the chips."""
