"""Somebody else's Flower app is read and loaded as by Flower; what is wrong with it is said in one message."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedsim.engine.apps import app_traceback, find_app
from fedsim.errors import AppError
from tests.engine.app_folders import APPS, SERVER, own_imports, write_app


@pytest.fixture(autouse=True)
def _imports() -> Iterator[None]:
    with own_imports():
        yield


class TestReading:
    def test_an_app_as_flower_makes_it(self) -> None:
        app = find_app(APPS / "torch_app")
        assert (app.name, app.version) == ("tests/torch-app", "1.0.0")
        assert (app.server, app.client) == ("torch_app.server_app:app", "torch_app.client_app:app")
        assert app.run_config == {
            "num-nodes": 4,
            "num-server-rounds": 3,
            "output": "torch_app.json",
            "model.hidden": 16,
            "model.lr": 0.1,
        }
        assert app.overrides == {}

    def test_the_folder_may_be_relative(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(APPS)
        assert find_app("numpy_app").folder == APPS / "numpy_app"

    def test_no_configuration_at_all(self, tmp_path: Path) -> None:
        write_app(tmp_path)
        file = tmp_path / "pyproject.toml"
        file.write_text(file.read_text().replace("[tool.flwr.app.config]", ""))
        assert find_app(tmp_path).run_config == {}

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            (["num-server-rounds=7"], {"num-server-rounds": 7}),
            (["model.lr=0.5 model.hidden=8"], {"model.lr": 0.5, "model.hidden": 8}),
            (["model.lr=0.5", "output='x y.json'"], {"model.lr": 0.5, "output": "x y.json"}),
            (['output="a.toml"'], {"output": "a.toml"}),
            (["num-server-rounds=true"], {"num-server-rounds": True}),
            ([""], {}),
        ],
    )
    def test_changes(self, changes: list[str], expected: dict[str, object]) -> None:
        app = find_app(APPS / "torch_app", changes)
        assert app.overrides == expected
        assert app.run_config == find_app(APPS / "torch_app").run_config | expected
        assert {key: type(value) for key, value in app.overrides.items()} == {
            key: type(value) for key, value in expected.items()
        }

    def test_changes_in_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "changes.toml"
        file.write_text("num-server-rounds = 9\n[model]\nlr = 1.5\n")
        app = find_app(APPS / "torch_app", [str(file)])
        assert app.overrides == {"num-server-rounds": 9, "model.lr": 1.5}

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            (["num-server-round=7"], 'no key "num-server-round"; did you mean "num-server-rounds"? there are num-'),
            (["hidden=7"], 'the app declares no key "hidden"'),
            (["output=plain"], "strings need quotes"),
            (["num-server-rounds 7"], 'pairs are key=value, separated by spaces, got "num-server-rounds 7"'),
            (["model.lr=0.5 and more"], 'got "and more"'),
            (["output=[1]"], "needs to be of type"),
            (["nothing.toml"], "nothing.toml: No such file or directory"),
            (["a.toml", "model.lr=1"], "TOML files cannot be passed alongside key-value pairs"),
        ],
    )
    def test_changes_that_are_refused(self, changes: list[str], said: str) -> None:
        with pytest.raises(AppError) as caught:
            find_app(APPS / "torch_app", changes)
        assert str(caught.value).startswith("--run-config: ")
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("before", "after", "said"),
        [
            ('serverapp = "little.server:app"\n', "", 'Property "serverapp" missing in [tool.flwr.app.components]'),
            ('clientapp = "little.client:app"\n', "", 'Property "clientapp" missing in [tool.flwr.app.components]'),
            ('"little.client:app"', '"little.client"', 'clientapp: must be "module:attribute", got \'little.'),
            ('"little.server:app"', "3", 'serverapp: must be "module:attribute", got 3'),
            ("[tool.flwr.app]", "[tool.other]", 'Property "publisher" missing'),
            ('publisher = "me"', "", 'Property "publisher" missing in [tool.flwr.app]'),
            ('version = "0.1.0"', "", 'Property "version" missing in [project]'),
            ("[project]", "[project", "Expected ']'"),
            ("[tool.flwr.app.config]", "[tool.flwr.app.config]\nlist = [1, 2]", "needs to be of type"),
        ],
    )
    def test_a_project_file_that_is_wrong(self, tmp_path: Path, before: str, after: str, said: str) -> None:
        file = write_app(tmp_path) / "pyproject.toml"
        assert before in file.read_text()
        file.write_text(file.read_text().replace(before, after))
        with pytest.raises(AppError) as caught:
            find_app(tmp_path)
        assert str(file) in str(caught.value)
        assert said in str(caught.value)
        assert caught.value.exit_code == 2

    def test_no_app_there(self, tmp_path: Path) -> None:
        with pytest.raises(AppError, match=r"pyproject\.toml: no such file; give the folder of a Flower app"):
            find_app(tmp_path)
        with pytest.raises(AppError, match="@flwrlabs/app: apps of Flower Hub are not fetched"):
            find_app("@flwrlabs/app")


class TestLoading:
    def test_the_folder_is_first_on_the_path(self, tmp_path: Path) -> None:
        app = find_app(write_app(tmp_path))
        sys.path.append(str(tmp_path))
        app.load_client()
        app.load_server()
        assert sys.path[0] == str(tmp_path)
        assert sys.path.count(str(tmp_path)) == 1

    def test_but_not_our_name(self, tmp_path: Path) -> None:
        write_app(tmp_path, name="fedsim")
        with pytest.raises(AppError, match="an app with a package of this name cannot run on fedsim; rename it"):
            find_app(tmp_path)
        assert find_app(APPS.parents[1]).name == "fedsim/fedsim"  # which is a Flower app itself

    @pytest.mark.parametrize("name", ["clients", "strategies"])
    def test_an_app_may_have_a_package_named_as_ours(self, tmp_path: Path, name: str) -> None:
        import clients.app  # noqa: F401 - loaded, as in a run
        import strategies.flower  # noqa: F401

        before = sys.modules[name]
        app = find_app(write_app(tmp_path, name=name))
        app.load_client()
        app.load_server()
        assert sys.modules[name] is not before
        assert Path(str(sys.modules[name].__file__)).parent == tmp_path / name
        other = {"clients": "strategies", "strategies": "clients"}[name]
        assert tmp_path not in Path(str(sys.modules[other].__file__)).parents  # what the app has not is still ours

    @pytest.mark.parametrize(
        ("reference", "said"),
        [
            ("little.nothing:app", 'there is no module "little.nothing" in '),
            ("nowhere.client:app", 'there is no module "nowhere" in '),
            ("little.client:application", 'little.client has no "application"'),
            ("little.client:app.inner", 'little.client has no "app.inner"'),
            ("little.client:Message", "little.client:Message is no ClientApp, got type"),
            ("little.server:app", "little.server:app is no ClientApp, got ServerApp"),
        ],
    )
    def test_a_component_that_is_not_there(self, tmp_path: Path, reference: str, said: str) -> None:
        file = write_app(tmp_path) / "pyproject.toml"
        file.write_text(file.read_text().replace("little.client:app", reference))
        with pytest.raises(AppError) as caught:
            find_app(tmp_path).load_client()
        assert str(caught.value).startswith(f"{file}, clientapp: ")
        assert said in str(caught.value)
        assert "Traceback" not in str(caught.value)

    def test_a_component_of_a_component(self, tmp_path: Path) -> None:
        file = write_app(tmp_path, client="class holder:\n    inner = app\n") / "pyproject.toml"
        file.write_text(file.read_text().replace("little.client:app", "little.client:holder.inner"))
        find_app(tmp_path).load_client()

    def test_an_error_at_import_shows_the_app_s_traceback_alone(self, tmp_path: Path) -> None:
        write_app(tmp_path, client="def broken():\n    return 1 / 0\n\nbroken()\n")
        with pytest.raises(AppError) as caught:
            find_app(tmp_path).load_client()
        said = str(caught.value).splitlines()
        assert said[0] == f"{tmp_path / 'pyproject.toml'}, clientapp: little.client cannot be imported"
        assert said[1] == "Traceback (most recent call last):"
        assert f'File "{tmp_path / "little" / "client.py"}", line' in said[2]
        assert said[-1] == "ZeroDivisionError: division by zero"
        assert "fedsim" not in str(caught.value)
        assert "importlib" not in str(caught.value)

    def test_a_library_that_is_missing(self, tmp_path: Path) -> None:
        write_app(tmp_path, server="import no_such_library\n" + SERVER)
        with pytest.raises(AppError) as caught:
            find_app(tmp_path).load_server()
        assert f'File "{tmp_path / "little" / "server.py"}", line 1' in str(caught.value)
        assert str(caught.value).endswith("ModuleNotFoundError: No module named 'no_such_library'")

    def test_an_error_of_syntax(self, tmp_path: Path) -> None:
        write_app(tmp_path, client="def broken(:\n")
        with pytest.raises(AppError) as caught:
            find_app(tmp_path).load_client()
        assert f'File "{tmp_path / "little" / "client.py"}", line' in str(caught.value)
        assert "SyntaxError" in str(caught.value)
        assert "importlib" not in str(caught.value)

    def test_an_app_that_ends_the_process_at_import(self, tmp_path: Path) -> None:
        write_app(tmp_path, client="import sys\nsys.exit(0)\n")
        with pytest.raises(AppError, match="SystemExit: 0"):
            find_app(tmp_path).load_client()

    def test_the_working_directory_is_the_user_s(self, tmp_path: Path) -> None:
        write_app(tmp_path / "app", client="import os\nhere = os.getcwd()\n")
        before = Path.cwd()
        find_app(tmp_path / "app").load_client()
        assert sys.modules["little.client"].here == str(before)
        assert Path.cwd() == before


def test_a_traceback_begins_in_the_app_along_the_whole_chain(tmp_path: Path) -> None:
    code = """
        def inner():
            raise KeyError("a")

        def outer():
            try:
                inner()
            except KeyError as error:
                raise ValueError("b") from error
        """
    write_app(tmp_path, client=code)
    find_app(tmp_path).load_client()
    with pytest.raises(ValueError, match="b") as caught:
        sys.modules["little.client"].outer()
    said = app_traceback(caught.value, tmp_path)
    assert "KeyError: 'a'" in said
    assert said.endswith("ValueError: b")
    assert __file__ not in said
