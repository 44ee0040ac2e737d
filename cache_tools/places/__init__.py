"""Where things lie: folders and files that commands create, URLs, and files that systems leave."""
