"""Conversations: messages in, a prompt out; an answer in, its parts out."""
