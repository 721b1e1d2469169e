import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.data.manifest import RECORDING_SUFFIXES, SPLITS, Clip, Manifest, ManifestError, read_manifest
from producers.sources.formats import RECORDING_SUFFIXES as READ


@pytest.fixture
def folder(tmp_path):
    """Recordings by name only: the manifest does not look into them."""
    for name in ("leak/1.wav", "leak/2.ogg", "pump/1.wav", "pump/day 2/3.FLAC"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "set"


def table(tmp_path, text, name="set.csv", files=("a.wav", "b.wav")):
    for file in files:
        (tmp_path / file).touch()
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path):
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    return str(caught.value)


def test_endings_taken_from_folders_are_those_that_replay_reads():
    assert READ == RECORDING_SUFFIXES


def test_each_file_of_a_class_folder_is_a_recording_of_its_own(folder):
    manifest = read_manifest(folder)
    assert manifest.label_names == ("leak", "pump")
    assert [(clip.label, clip.recording, clip.split) for clip in manifest.clips] == [
        ("leak", "leak/1.wav", ""),
        ("leak", "leak/2.ogg", ""),
        ("pump", "pump/1.wav", ""),
        ("pump", "pump/day 2/3.FLAC", ""),
    ]
    assert any("recording of its own" in note for note in manifest.notes)


def test_folders_named_after_parts_are_parts(tmp_path):
    for name in ("train/a/1.wav", "train/b/1.wav", "val/a/2.wav", "Test/b/3.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    clips = read_manifest(tmp_path).clips
    assert {(clip.recording, clip.label, clip.split) for clip in clips} == {
        ("train/a/1.wav", "a", "train"),
        ("train/b/1.wav", "b", "train"),
        ("val/a/2.wav", "a", "validation"),
        ("Test/b/3.wav", "b", "test"),
    }


def test_a_class_may_be_called_test_if_it_holds_recordings(folder):
    (folder / "test").mkdir()
    (folder / "test" / "1.wav").touch()
    assert read_manifest(folder).label_names == ("leak", "pump", "test")


def test_a_class_beside_parts_is_refused(folder):
    (folder / "train" / "a").mkdir(parents=True)
    assert "leak, pump beside train" in refusal(folder)


def test_what_is_left_out_of_a_folder_is_noted(folder):
    for name in (".hidden/1.wav", "leak/.ds.wav", "leak/notes.txt", "README.md", "empty/x.pridb"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    manifest = read_manifest(folder)
    assert len(manifest.clips) == 4
    notes = "\n".join(manifest.notes)
    assert "no recording in empty, so that is no class" in notes
    assert "1 .pridb, 1 .txt" in notes
    assert "1 file in no class folder" in notes


def test_a_link_to_a_folder_above_ends_nowhere(folder):
    (folder / "leak" / "again").symlink_to(folder, target_is_directory=True)
    assert 4 <= len(read_manifest(folder).clips) < 20


def test_folds_as_classes_are_noted(tmp_path):
    for fold in ("fold1", "fold2"):
        for label in ("a", "b"):
            (tmp_path / fold / label).mkdir(parents=True)
            (tmp_path / fold / label / "1.wav").touch()
    assert any("every class folder holds the same folders (a, b)" in note for note in read_manifest(tmp_path).notes)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "nowhere", "no such file or folder"),
        (lambda p: p, "no folder in it holds a recording"),
        (lambda p: table(p, "", "set.txt"), "is no data set"),
        (lambda p: table(p, ""), "no column path and no column label; there are none"),
        (lambda p: table(p, "path,label\n"), "holds no rows"),
        (lambda p: table(p, "file,class\na.wav,x\n"), "there are file, class"),
        (lambda p: table(p, "path,label,label\n"), "column label stands there twice"),
        (lambda p: table(p, "path,label,split,fold\n"), "a column split and a column fold"),
        (lambda p: table(p, "path,label\na.wav,x\nb.wav,x\n"), "the only label is 'x'"),
        (lambda p: table(p, 'path,label\na.wav,"x\n'), "quotation mark left open"),
    ],
)
def test_what_is_no_data_set_says_why(tmp_path, make, words):
    assert words in refusal(make(tmp_path))


def test_a_folder_with_a_table_in_it_points_to_the_table(tmp_path):
    table(tmp_path, "path,label\n")
    assert f"did you mean {tmp_path / 'set.csv'}?" in refusal(tmp_path)


def test_a_folder_of_recordings_beside_their_table_points_to_the_table(tmp_path):
    table(tmp_path, "path,label\n")
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "a.wav").touch()
    with pytest.raises(ManifestError, match=r"the only label is 'audio'.*did you mean .*set\.csv\?"):
        read_manifest(tmp_path)


def test_a_table_may_name_files_in_the_users_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sets").mkdir()
    (tmp_path / "b.wav").touch()
    found = read_manifest(table(tmp_path / "sets", "path,label\na.wav,leak\n~/b.wav,pump\n", files=("a.wav",)))
    assert found.clips[1].path == tmp_path / "b.wav"


def test_recordings_in_no_class_folder_are_no_data_set(folder):
    assert "2 lie beside one another" in refusal(folder / "leak")


def test_a_table_says_everything_of_a_clip(tmp_path):
    path = table(
        tmp_path,
        "path,label,start,end,channel,sensor,position,recording,fold,remark\n"
        "a.wav,leak,0.5,2,1,s1,p1,monday,3,loud\n"
        "./b.wav,pump,,,,,,,4,\n",
    )
    manifest = read_manifest(path)
    assert manifest.clips == (
        Clip(tmp_path / "a.wav", "leak", 0.5, 2.0, 1, "s1", "p1", "monday", "3"),
        Clip(tmp_path / "b.wav", "pump", recording="b.wav", split="4"),
    )
    assert "left out: remark" in manifest.notes[0]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_may_come_from_a_spreadsheet(tmp_path, delimiter):
    rows = [["Path", " Label", "Split"], ["a.wav", "leak", "Train"], ["b.wav", "pump", "val"], ["", "", ""]]
    text = "\ufeff" + "\r\n".join(delimiter.join(row) for row in rows)
    assert [clip.split for clip in read_manifest(table(tmp_path, text)).clips] == ["train", "validation"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("c.wav,x,,,,", "path 'c.wav': no such file"),
        (",x,,,,", "no path"),
        ("a.wav,,,,,", "no label"),
        ("a.wav,x,soon,,,", "start 'soon' is no number of seconds"),
        ("a.wav,x,-1,,,", "start '-1'"),
        ("a.wav,x,,nan,,", "end 'nan'"),
        ("a.wav,x,2,1,,", "end 1 is not after start 2"),
        ("a.wav,x,,,left,", "channel 'left' is no whole number"),
        ("a.wav,x,,,99999999999999999999,", "channel '99999"),
        ("a.wav,x,,,,dev", "split 'dev' is none of train, validation, test"),
        ("a.wav,x", "2 fields, the header has 6"),
        ("a.wav,x\x07,,,,", "control characters"),
        ("a.wav,x,0,,,\nb.wav,y,,,,\na.wav,x,0,,,", "line 4: says what line 2 said"),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_value(tmp_path, row, words):
    refused = refusal(table(tmp_path, f"path,label,start,end,channel,split\n{row}\n"))
    assert words in refused
    assert f"{tmp_path / 'set.csv'}, line " in refused


def test_all_bad_rows_are_told_at_once_up_to_twenty(tmp_path):
    refused = refusal(table(tmp_path, "path,label\n" + "".join(f"missing{n}.wav,x\n" for n in range(30))))
    assert refused.count("no such file") == 20
    assert "and 10 more" in refused


def test_a_row_without_a_part_among_rows_with_one_is_refused(tmp_path):
    refused = refusal(table(tmp_path, "path,label,split\na.wav,x,train\nb.wav,y,\n"))
    assert "line 3: no split, but other rows have one" in refused


def test_a_fold_is_not_called_train(tmp_path):
    assert "name the column split" in refusal(table(tmp_path, "path,label,fold\na.wav,x,train\nb.wav,y,test\n"))


def test_parquet_says_the_same_as_csv(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    text = "path,label,start,end,channel,fold\na.wav,leak,0.5,2,1,3\nb.wav,pump,,,,4\n"
    columns = {
        "path": ["a.wav", "b.wav"],
        "label": pyarrow.array(["leak", "pump"]).dictionary_encode(),
        "start": [0.5, None],
        "end": [2.0, float("nan")],
        "channel": [1.0, None],
        "fold": [3, 4],
        "embedding": [[1.0], [2.0]],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "set.parquet")
    same = read_manifest(table(tmp_path, text))
    assert read_manifest(tmp_path / "set.parquet").clips == same.clips


def test_a_broken_parquet_file_is_named(tmp_path):
    pytest.importorskip("pyarrow")
    assert "cannot be read as Parquet" in refusal(table(tmp_path, "not at all", "set.parquet"))


def test_without_pyarrow_parquet_names_the_extra(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "aewatch[train]" in refusal(table(tmp_path, "", "set.parquet"))


fields = st.one_of(
    st.sampled_from(
        ["a.wav", "b.wav", "x", "y", "", "0", "1.5", "-1", "1e999", "nan", "train", "val", "3", "../..", "/"]
    ),
    st.text(max_size=8),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.lists(
        st.sampled_from(["path", "label", "start", "end", "channel", "split", "fold", "extra"]), max_size=7
    ),
    rows=st.lists(st.lists(fields, max_size=7), max_size=6),
)
def test_any_table_is_read_or_refused_by_name(tmp_path, header, rows):
    text = io.StringIO()
    csv.writer(text).writerows([["path", "label", *header], *rows])
    path = table(tmp_path, "")
    path.write_text(text.getvalue(), encoding="utf-8", errors="replace", newline="")
    check_read_or_refused(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(garbage=st.binary(max_size=200), sound=st.booleans())
def test_any_bytes_are_read_or_refused_by_name(tmp_path, garbage, sound):
    path = table(tmp_path, "")
    path.write_bytes((b"path,label\na.wav,x\nb.wav,y\n" if sound else b"") + garbage)
    check_read_or_refused(path)


def check_read_or_refused(path: Path) -> None:
    try:
        manifest = read_manifest(path)
    except ManifestError as error:
        assert str(path) in str(error)  # noqa: PT017 - either outcome is right
        return
    assert isinstance(manifest, Manifest)
    assert len(manifest.label_names) >= 2
    for clip in manifest.clips:
        assert clip.path.is_file()
        assert clip.label
        assert clip.recording
        assert clip.end_s is None or clip.end_s > (clip.start_s or 0.0) >= 0.0
    parts = {clip.split for clip in manifest.clips}
    assert "" not in parts or parts == {""} or parts <= set(SPLITS)
