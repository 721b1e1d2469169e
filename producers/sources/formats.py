"""Which recordings can be read, and by which module; a module is imported when the first such file is opened."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of recording. Its module has `open_source(path: Path, reading: Reading) -> Source`."""

    name: str
    suffixes: frozenset[str]  #: lower case, with the dot
    module: str
    magics: tuple[bytes, ...] = ()  #: how a file begins, where its name does not tell


FORMATS = (
    Format(
        "audio",
        frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".w64", ".rf64", ".caf", ".au"}),
        "producers.sources.audio_file",
        (b"RIFF", b"RF64", b"fLaC", b"OggS", b"FORM"),
    ),
    Format("Vallen", frozenset({".tradb"}), "producers.sources.vallen"),
    Format("MISTRAS", frozenset({".dta"}), "producers.sources.mistras"),
    Format("NumPy", frozenset({".npy", ".npz"}), "producers.sources.numpy_file", (b"\x93NUMPY",)),
    Format("MATLAB", frozenset({".mat"}), "producers.sources.matlab_file", (b"MATLAB ",)),
    Format("HDF5", frozenset({".h5", ".hdf5"}), "producers.sources.hdf5_file", (b"\x89HDF\r\n\x1a\n",)),
    Format("TDMS", frozenset({".tdms"}), "producers.sources.tdms_file", (b"TDSm",)),
    Format("CSV", frozenset({".csv", ".tsv"}), "producers.sources.csv_file"),
)

RECORDING_SUFFIXES = frozenset(suffix for known in FORMATS for suffix in known.suffixes)
