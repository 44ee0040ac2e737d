"""Paths and URLs: folders and files that commands create, addresses of caches, and files that systems leave."""
