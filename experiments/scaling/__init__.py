"""What a step asks of many chips: communication, memory and time, without the chips."""
