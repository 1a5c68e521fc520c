"""What a model wrote, taken apart: content, reasoning, tool calls."""
