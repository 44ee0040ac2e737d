"""Caches on their way: to and from folders and servers, whole or in part, and while they are being built."""
