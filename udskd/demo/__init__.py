"""`udskd demo`: a teacher and three pairs of students on generated images, as a table and a figure."""
