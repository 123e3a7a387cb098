"""UserError and the command-line boundary."""

import copy
import io
import sys

import pytest
import typer

from unival.errors import UserError, did_you_mean, run_cli


def make_app(error: Exception | None) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def main(name: str = "x") -> None:
        if error:
            raise error
        typer.echo(f"hello {name}")

    return app


def exit_code(app: typer.Typer, argv: list[str]) -> int:
    with pytest.raises(SystemExit) as info:
        run_cli(app, argv)
    return int(info.value.code or 0)


def test_user_error_is_a_value_error_of_one_line() -> None:
    error = UserError("bad\nfile", where="a.png", fix="give another")
    assert isinstance(error, ValueError)
    assert str(error) == "bad file [a.png] (give another)"
    assert error.lines() == ["error: bad file", "  where: a.png", "  fix: give another"]


def test_parts_that_are_not_given_are_not_printed() -> None:
    assert UserError("bad").lines() == ["error: bad"]
    assert str(UserError("bad", fix="x")) == "bad (x)"


def test_a_name_cannot_send_control_codes_to_the_terminal() -> None:
    assert str(UserError("no file '\x1b[31m\x07\u202e.png'")) == r"no file '\x1b[31m\x07\u202e.png'"


def test_a_very_long_value_is_cut() -> None:
    assert len(UserError("x" * 100_000).what) == 600


def test_pickling_keeps_every_part() -> None:
    # A worker process sends its error to the parent by pickling it; copying takes the same way.
    clone = copy.copy(UserError("what", "where", "fix"))
    assert (clone.what, clone.where, clone.fix) == ("what", "where", "fix")


@pytest.mark.parametrize("name", ["captoin", "Caption", "CAPTION", "captions"])
def test_the_closest_name_is_suggested(name: str) -> None:
    assert did_you_mean(name, ["vqa", "caption"]) == "did you mean 'caption'? valid: caption, vqa"


def test_without_a_close_name_the_choices_are_listed() -> None:
    assert did_you_mean("zzz", ["vqa", "caption"]) == "valid: caption, vqa"
    assert did_you_mean("zzz", []) == "nothing is valid here"


def test_a_long_list_of_choices_is_cut() -> None:
    hint = did_you_mean("zzz", [f"name{i:03d}" for i in range(50)])
    assert hint.endswith("name019 and 30 more")


def test_cli_prints_the_error_on_stderr_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(make_app(UserError("bad key", "a.yaml", "use b")), []) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: bad key\n  where: a.yaml\n  fix: use b\n")


@pytest.mark.parametrize("argv", [["--debug"], ["--name", "y", "--debug"]])
def test_debug_lets_the_traceback_through(argv: list[str]) -> None:
    with pytest.raises(UserError, match="bad key"):
        run_cli(make_app(UserError("bad key")), argv)


NO_SPACE = OSError(28, "No space left on device", "/disk/model.safetensors")


def test_a_file_that_the_system_refuses_is_named_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(make_app(NO_SPACE), []) == 2
    error, where, fix = capsys.readouterr().err.splitlines()
    assert error.endswith("No space left on device")
    assert where == "  where: /disk/model.safetensors"
    assert "--debug" in fix
    with pytest.raises(OSError, match="No space"):
        run_cli(make_app(NO_SPACE), ["--debug"])
    with pytest.raises(OSError, match="no file"):
        run_cli(make_app(OSError("about no file")), [])


def test_a_full_disk_is_no_defect_though_an_open_file_has_no_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(make_app(OSError(28, "No space left on device")), []) == 2
    error, fix = capsys.readouterr().err.splitlines()
    assert error == "error: a file cannot be read or written: No space left on device"
    assert "the space on the disk" in fix


def test_another_exception_is_a_defect_and_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run_cli(make_app(ZeroDivisionError()), [])


def test_cli_success_exits_0_and_debug_is_not_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(make_app(None), ["--debug", "--name", "you"]) == 0
    assert capsys.readouterr().out == "hello you\n"


def test_a_result_that_the_terminal_cannot_show_is_escaped_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()
    app.command()(lambda: print("hello 猫.png"))
    for encoding, shown in (("ascii", rb"hello \u732b.png"), ("utf-8", "hello 猫.png".encode())):
        written = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding))
        assert exit_code(app, []) == 0
        sys.stdout.flush()
        assert written.getvalue() == shown + b"\n"


def test_an_unknown_option_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(make_app(None), ["--nmae", "you"]) == 2
    assert "Traceback" not in capsys.readouterr().err
