"""The shape of most students in the tests."""

from comet.student.family import StudentShape

NANO = StudentShape("nano", 3, 48, 4, 192)
