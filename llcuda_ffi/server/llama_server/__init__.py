"""What llama.cpp's own server has besides OpenAI's API, under its paths and names."""
