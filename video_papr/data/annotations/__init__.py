"""Lists of labelled videos, one module for each way in which they come.

    folder.py    root/<class>/<video>
    lists.py     text files of a path and a label in each line (VideoMAE, SlowFast)
    kinetics.py  Kinetics-400 in the shapes it is found in
    ssv2.py      Something-Something v2: JSON lists and labels.json
    ucf101.py    UCF101: testlist01.txt, classInd.txt
    hmdb51.py    HMDB51: a file of flags for each class
    names.py     files of class names
    records.py   what all of them return, and what they share

Reading a list opens no video. A video that a list names but the disk lacks is kept apart in `missing`, never
dropped in silence: lists and downloads of the same dataset drift apart, and an accuracy without these counts
means nothing.
"""

from __future__ import annotations

from .folder import read_folder
from .hmdb51 import read_hmdb51
from .kinetics import kinetics400_class_names, read_kinetics
from .lists import read_csv
from .names import read_class_names
from .records import OnInvalid, VideoList, VideoRecord, inside_root, refuse
from .ssv2 import read_ssv2
from .ucf101 import read_ucf101
