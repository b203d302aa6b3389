"""The teacher cache: the teacher's logits for the view of every image in every epoch, computed once for several runs.

`udskd cache-teacher` (writer.py) writes a folder, which a run reads where `teacher.cache` names it (reader.py):

    cache.json         the format, what the logits depend on, and the SHA-256 of the logits of each complete epoch
    images.manifest    the names and digests of the training images
    epoch-NNNN.npy     the logits of one epoch: float16 [N, C], a row for each training image in the set's order, NaN
                       where the image could not be read

A run may use a cache if
- everything in dependencies.py is equal: seed, teacher, classes, the images' names and labels, the options of the
  view, precision;
- the images have the contents that images.manifest lists;
- every epoch of the run is there, with the logits that its SHA-256 names.
Method, batch size, loader, device and number of processes may differ.
"""
