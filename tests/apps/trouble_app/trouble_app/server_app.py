"""The server: trains twice and prints what came back."""

import json

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Send the same content to all nodes, twice."""
    if context.run_config["trouble"] == "server-raises":
        fall_over(context)
    content = RecordDict({"config": ConfigRecord({"word": "sent"})})
    for number in (1, 2):
        messages = [Message(content, dst_node_id=node, message_type="train") for node in grid.get_node_ids()]
        timeout = context.run_config["timeout"]
        replies = list(grid.send_and_receive(messages, timeout=timeout if timeout > 0 else None))
        said = {
            reply.metadata.src_node_id: reply.error.code
            if reply.has_error()
            else reply.content["metrics"]["trained"]
            for reply in replies
        }
        reasons = sorted(reply.error.reason for reply in replies if reply.has_error())
        print(json.dumps({"round": number, "said": said, "reasons": reasons, "word": content["config"]["word"]}))


def fall_over(context):
    """Look up a key that is not there."""
    return context.run_config["no-such-key"]
