"""What a cache can hold of a teacher."""

UNUSED_POSITION = 65535
UNUSED_ID = -1
