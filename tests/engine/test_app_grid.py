"""A ServerApp and its ClientApp see on our grids what they see on Flower's."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedsim.engine.app_grid import AppGrid
from fedsim.errors import EngineError
from tests.engine.app_clients import Open, answers, asked, content, messages

pytestmark = pytest.mark.usefixtures("own_app_imports")


class TestWhatAClientSees:
    def test_metadata(self, grid: AppGrid) -> None:
        shared = content("w")
        sent = [
            Message(shared, dst_node_id=node, message_type="evaluate", group_id=f"g{node}", ttl=50.0 + node)
            for node in (4, 2, 5)
        ]
        for message, seen in zip(sent, answers(grid.send_and_receive(sent)), strict=True):
            letter = message.metadata
            assert letter.message_id
            assert seen["id"] == letter.message_id
            assert (seen["src"], seen["dst"]) == (letter.src_node_id, letter.dst_node_id)
            assert seen["node"] == letter.dst_node_id
            assert (seen["group"], seen["ttl"], seen["created"]) == (letter.group_id, letter.ttl, letter.created_at)
            assert (seen["type"], seen["reply"]) == ("evaluate", "")
            assert seen["run"] == seen["context-run"] == letter.run_id == grid.run.run_id
            assert seen["delivered"]
            assert seen["keys"] == ["config"]

    def test_context(self, grid: AppGrid) -> None:
        for node, seen in zip((5, 1), answers(grid.send_and_receive(messages([5, 1]))), strict=True):
            assert seen["node-config"] == [f"partition-id={node - 1}", "num-partitions=5"]
            assert seen["run-config"] == ["lr=0.5", "name='x'"]
            assert seen["cwd"] == str(Path.cwd())

    def test_mods_of_the_app_go_around_those_of_the_function(self, grid: AppGrid) -> None:
        (trained,) = answers(grid.send_and_receive(messages([1])))
        assert trained["trail"] == "outer inner own  inner outer"
        (evaluated,) = answers(grid.send_and_receive(messages([1], "evaluate")))
        assert evaluated["trail"] == "outer inner  inner outer"

    @pytest.mark.parametrize("kind", ["train", "train.foo", "evaluate", "query.bar"])
    def test_the_function_of_the_type_answers(self, grid: AppGrid, kind: str) -> None:
        (reply,) = grid.send_and_receive(messages([3], kind))
        assert reply.content["answer"]["function"] == kind
        assert reply.metadata.message_type == kind

    def test_a_type_without_a_function_is_an_error_reply(self, grid: AppGrid) -> None:
        (reply,) = grid.send_and_receive(messages([3], "query"))
        assert reply.error.code == 2
        assert "No query function registered with name 'default'" in str(reply.error.reason)

    def test_records_are_each_client_s_own_and_the_server_keeps_its(self, grid: AppGrid) -> None:
        shared = content("same")
        sent = [Message(shared, dst_node_id=node, message_type="train") for node in (1, 2, 3, 1)]
        trails = [answer["trail"] for answer in answers(grid.send_and_receive(sent))]
        assert trails == ["outer inner own  inner outer"] * 4
        assert dict(shared["config"]) == {"word": "same"}

    def test_different_contents(self, grid: AppGrid) -> None:
        sent = [Message(content(f"to {node}"), dst_node_id=node, message_type="train") for node in (2, 5, 1)]
        assert [answer["word"] for answer in answers(grid.send_and_receive(sent))] == ["to 2", "to 5", "to 1"]


class TestState:
    def test_it_lives_through_messages_of_all_types_node_by_node(self, grid: AppGrid) -> None:
        assert asked(grid, [1, 2, 3, 4, 5]) == [1] * 5
        assert asked(grid, [2, 4], "evaluate") == [2, 2]
        assert asked(grid, [2, 3], "query.bar") == [3, 2]
        assert asked(grid, [5, 4, 3, 2, 1], "train.foo") == [2, 3, 3, 4, 2]

    def test_several_messages_to_one_node_are_answered_in_their_order(self, grid: AppGrid) -> None:
        sent = [Message(content(w), dst_node_id=n, message_type="train") for n, w in ((1, "a"), (2, "b"), (1, "c"))]
        sent += messages([1, 1], "evaluate", "d")
        found = answers(grid.send_and_receive(sent))
        assert [(a["dst"], a["word"], a["asked"]) for a in found] == [
            (1, "a", 1),
            (2, "b", 1),
            (1, "c", 2),
            (1, "d", 3),
            (1, "d", 4),
        ]

    def test_a_client_that_raises_keeps_what_it_had(self, grid: AppGrid) -> None:
        assert asked(grid, [1, 2, 3]) == [1, 1, 1]
        replies = grid.send_and_receive(messages([1, 2, 3], victim=2))
        assert [reply.has_error() for reply in replies] == [False, True, False]
        assert asked(grid, [1, 2, 3]) == [3, 2, 3]

    def test_a_lifespan_is_entered_and_left_around_each_message(self, grid: AppGrid) -> None:
        grid.send_and_receive(messages([2]))
        grid.send_and_receive(messages([2], "evaluate"))
        (third,) = answers(grid.send_and_receive(messages([2], "query.bar")))
        assert third["lifespan"] == "()()("

    def test_changing_a_reply_changes_nothing_that_a_client_keeps(self, make: Open) -> None:
        grid = make(
            1,
            """
            @app.train()
            def train(message, context):
                if "mine" not in context.state:
                    context.state["mine"] = MetricRecord({"a": 1})
                return Message(RecordDict({"mine": context.state["mine"]}), reply_to=message)
            """,
        )
        (reply,) = grid.send_and_receive(messages([1]))
        reply.content["mine"]["a"] = 99
        (again,) = grid.send_and_receive(messages([1]))
        assert again.content["mine"]["a"] == 1


class TestMods:
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_those_of_flower(self, make: Open, caplog: pytest.LogCaptureFixture) -> None:
        """They look at sizes, and clip the update to a norm that the server sends."""
        grid = make(
            2,
            """
            from flwr.app import Array
            from flwr.clientapp.mod import arrays_size_mod, fixedclipping_mod, message_size_mod
            import numpy as np

            app = ClientApp(mods=[message_size_mod, arrays_size_mod, fixedclipping_mod])

            @app.train()
            def train(message, context):
                arrays = ArrayRecord({"w": Array(np.full(4, 10.0))})
                reply = Message(RecordDict({"arrays": arrays}), reply_to=message)
                assert reply.content.object_id  # computed: Flower now keeps views of the bytes
                return reply
            """,
        )
        records = RecordDict(
            {"arrays": ArrayRecord({"w": Array(np.zeros(4))}), "config": ConfigRecord({"clipping_norm": 1.0})}
        )
        with caplog.at_level("INFO"):
            replies = grid.send_and_receive([Message(records, dst_node_id=n, message_type="train") for n in (1, 2)])
        assert [reply.error.reason for reply in replies if reply.has_error()] == []
        for reply in replies:
            np.testing.assert_allclose(reply.content["arrays"]["w"].numpy(), np.full(4, 0.5))
            pickle.dumps(reply.content)


class TestErrors:
    def test_the_code_and_reason_are_flower_s_with_the_app_s_traceback(self, grid: AppGrid) -> None:
        _, reply = grid.send_and_receive(messages([1, 2], victim=2))
        assert reply.error.code == 2
        said = str(reply.error.reason).splitlines()
        assert said[0] == "<class 'LookupError'>:<'nobody home'>"
        assert said[1] == "Traceback (most recent call last):"
        assert "client.py" in said[2]
        assert said[-1] == "LookupError: nobody home"
        assert "fedsim" not in "".join(said)
        assert reply.metadata.src_node_id == 2

    @pytest.mark.parametrize(
        ("body", "code", "said"),
        [
            ("return Message(Error(code=6, reason='not today'), reply_to=message)", 6, "not today"),
            ("return Message(Error(code=77), reply_to=message)", 77, ""),
            ("import sys; sys.exit(4)", 2, "SystemExit: 4"),
            ("return None", 0, "a ClientApp returns a Message, got NoneType"),
            ("return message", 0, "its reply answers another message"),
            ("return Message(RecordDict(), dst_node_id=1, message_type='train')", 0, "answers another message"),
            (
                "context.run_config['lr'] = 3.0; return Message(RecordDict(), reply_to=message)",
                0,
                "cannot be modified",
            ),
            (
                "context.state = 3; return Message(RecordDict(), reply_to=message)",
                0,
                "context.state cannot be kept",
            ),
        ],
    )
    def test_a_client_that_does_what_it_must_not(self, make: Open, body: str, code: int, said: str) -> None:
        grid = make(2, f"@app.train()\ndef train(message, context):\n    {body}\n")
        for _ in range(2):
            first, second = grid.send_and_receive(messages([1, 2]))
            assert first.error.code == second.error.code == code
            assert said in str(first.error.reason)
            assert first.metadata.src_node_id == 1

    @pytest.mark.parametrize("node", [0, 6, -3])
    def test_a_message_to_nobody_is_refused(self, grid: AppGrid, node: int) -> None:
        with pytest.raises(EngineError, match=f"node {node}: there are nodes 1 to 5"):
            grid.push_messages(messages([1, node]))

    def test_what_flower_would_not_send_is_not_sent(self, grid: AppGrid) -> None:
        (sent,) = messages([1])
        (reply,) = grid.send_and_receive([sent])
        with pytest.raises(ValueError, match="Invalid message"):
            grid.send_and_receive([reply])
        with pytest.raises(ValueError, match="Invalid message"):
            grid.push_messages([Message(content(), dst_node_id=1, message_type="train", ttl=-1.0)])
