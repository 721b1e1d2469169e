from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.event_labels import Label, LabelsError, events_of, labels_of, read_sidecar, sidecar_of
from deploy.replay_report import Event


def sidecar(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "pump.labels.csv"
    path.write_text(text)
    return path


def test_the_labels_of_a_recording_lie_beside_it() -> None:
    assert sidecar_of(Path("/data/pump.wav")) == Path("/data/pump.labels.csv")


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_table_beside_a_recording_tells_what_happens_when(tmp_path: Path, mark: str) -> None:
    rows = ["Label,start,end,channel", "knock,1.5,2,0", "", "drop,3,3,", "friction,,,"]
    path = sidecar(tmp_path, "\ufeff" + "\n".join(rows).replace(",", mark) + "\n")
    assert read_sidecar(path) == (Label("knock", 1.5, 2.0, 0), Label("drop", 3.0, 3.0), Label("friction"))


def test_a_table_with_a_header_only_says_that_nothing_happens(tmp_path: Path) -> None:
    recording = tmp_path / "pump.wav"
    sidecar(tmp_path, "start,end,label\n")
    assert labels_of([recording, tmp_path / "other.wav"], []) == {recording: ()}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("1,2", "line 3: 2 fields, the header has 4"),
        ("1,2,,", "line 3: label '' is no name of a class"),
        ("1,2,a\x07b,", "line 3: label 'a\\x07b' is no name"),
        ("one,2,knock,", "line 3: start 'one' is no number of seconds from 0 up; write it as 12.5"),
        ("-1,2,knock,", "line 3: start '-1' is no number"),
        ("1,nan,knock,", "line 3: end 'nan' is no number"),
        ("2,1,knock,", "line 3: end 1 is before start 2; swap them"),
        ("1,2,knock,left", "line 3: channel 'left' is no whole number"),
        ("0,1,drop,0", "line 3: says what line 2 said; leave one"),
    ],
)
def test_a_wrong_row_is_told_with_its_line_and_the_way_out(tmp_path: Path, row: str, told: str) -> None:
    path = sidecar(tmp_path, f"start,end,label,channel\n0,1,drop,0\n{row}\n")
    with pytest.raises(LabelsError) as error:
        read_sidecar(path)
    assert f"{path}, {told}" in str(error.value)


def test_of_many_wrong_rows_the_first_are_told(tmp_path: Path) -> None:
    path = sidecar(tmp_path, "start,end,label\n" + "x,1,drop\n" * 500)
    with pytest.raises(LabelsError) as error:
        read_sidecar(path)
    assert len(str(error.value).splitlines()) == 21
    assert "and 480 more" in str(error.value)


@pytest.mark.parametrize("header", ["", "start,end", "start,end,label,label", "1,2,knock"])
def test_a_table_without_its_header_is_told(tmp_path: Path, header: str) -> None:
    with pytest.raises(LabelsError, match="column label"):
        read_sidecar(sidecar(tmp_path, header + "\n0,1,knock,1\n"))


@given(st.binary(max_size=200))
def test_whatever_the_file_holds_it_is_read_or_refused_with_its_name(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.labels.csv"
    path.write_bytes(b"start,end,label\n" + content)
    told = str(path)
    try:
        read_sidecar(path)
    except LabelsError as error:
        told = str(error)
    assert str(path) in told


def test_the_rows_of_a_manifest_are_the_labels_of_its_files(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).touch()
    (tmp_path / "a.labels.csv").write_text("start,end,label\n5,6,drop\n")
    manifest = tmp_path / "clips.csv"
    manifest.write_text("path,label,start,end,channel\na.wav,knock,1,2,1\nb.wav,friction,,,\na.wav,drop,3,4,\n")
    labels = labels_of([tmp_path / "a.wav", tmp_path / "b.wav"], [manifest])
    assert labels == {
        tmp_path / "a.wav": (Label("knock", 1.0, 2.0, 1), Label("drop", 3.0, 4.0)),
        tmp_path / "b.wav": (Label("friction"),),
    }


def test_a_label_without_a_channel_is_an_event_at_every_sensor_of_its_recording() -> None:
    a, b = Path("a.wav"), Path("b.wav")
    owners = {"replay/r/a/ch0": a, "replay/r/a/ch1": a, "replay/r/b/ch0": b}
    labels = {a: (Label("knock", 1.0, 2.0), Label("drop", 3.0, None, 1))}
    assert events_of(owners, labels) == [
        Event("replay/r/a/ch0", "knock", 1.0, 2.0),
        Event("replay/r/a/ch1", "knock", 1.0, 2.0),
        Event("replay/r/a/ch1", "drop", 3.0, None),
    ]


def test_a_label_of_a_channel_that_is_not_played_is_told() -> None:
    with pytest.raises(LabelsError, match=r"'drop' is of channel 7, but the sensors played are replay/r/a/ch0; mend"):
        events_of({"replay/r/a/ch0": Path("a.wav")}, {Path("a.wav"): (Label("drop", channel=7),)})
