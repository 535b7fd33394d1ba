"""A rendered conversation whose last message is to be continued, as the harness asks for one."""


def left_open(text: str, last: str) -> str:
    """The text of a conversation up to the end of its last message, without what closes it.

    Raises:
      ValueError: the chat template dropped the message.
    Source: `continue_final_message` of `apply_chat_template` in transformers.
    """
    start = text.rfind(last.strip())
    if start < 0:
        raise ValueError(f"the chat template drops the message to be continued: {last!r}")
    whole = last.lstrip()
    kept = whole if text.startswith(whole, start) else last.strip()
    return text[: start + len(kept)]
