"""What visitors share: whose turn it is, and what is left for others."""

import threading

import pytest

from maskclip.web.guard import VISITOR, visitor_of
from maskclip.web.turns import Share, Turns


def test_visitors_have_their_turns_one_after_another():
    turns = Turns(32)
    for visitor, value in [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("b", 6)]:
        assert turns.put(visitor, value)
    assert [turns.get() for _ in range(3)] == [1, 4, 5]
    assert turns.put("d", 7)
    assert [turns.get() for _ in range(4)] == [2, 6, 7, 3]
    assert len(turns) == 0


def test_who_comes_often_keeps_nobody_waiting():
    turns = Turns(32)
    for value in range(3):
        turns.put("slow", value)
    found = []
    for number in range(6):  # another visitor each time, who has just come
        turns.put(f"new {number}", "new")
        found.append(turns.get())
    assert [value for value in found if value != "new"] == [0, 1, 2]


def test_what_waits_is_had_after_the_end_and_nothing_more_is_taken():
    turns = Turns(2)
    assert turns.get(0) is None
    assert turns.put("a", 1)
    turns.close()
    assert not turns.put("b", 2)
    assert not turns.ended
    assert (turns.get(), turns.get(), turns.ended) == (1, None, True)


def test_who_waits_for_a_value_is_let_go_by_the_end():
    turns = Turns(2)
    waiting = threading.Thread(target=turns.get)
    waiting.start()
    turns.close()
    waiting.join(10)
    assert not waiting.is_alive()


def test_the_last_quarter_is_for_who_has_none():
    share = Share(8)
    assert share.take("a", 6)
    assert not share.take("a", 1)
    assert share.take("b", 1)
    assert not share.take("b", 1)
    assert not share.take("c", 2)
    assert share.take("c", 1)
    share.give_back("a", 6)
    assert share.take("b", 4)
    assert Share(1).take("a", 1)
    assert not Share(0).take("a", 1)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("10.0.0.1", "x"), ("10.0.0.1", "y"), True),
        (("10.0.0.1", ""), ("10.0.0.2", ""), False),
        (("127.0.0.1", "x"), ("127.0.0.1", "y"), False),
        (("127.0.0.1", "x"), ("127.0.0.1", "x"), True),
        (("2001:db8::1", ""), ("2001:db8::2", ""), True),
        (("2001:db8::1", ""), ("2001:db8:0:1::1", ""), False),
        (("no address", ""), ("no address", ""), True),
    ],
)
def test_visitors_are_told_apart_by_what_is_none_of_their_making(one, other, same):
    def scope(address, cookie):
        headers = [(b"cookie", f"a=b; {VISITOR}={cookie}".encode())]
        return {"type": "http", "client": (address, 1), "headers": headers}

    assert (visitor_of(scope(*one)) == visitor_of(scope(*other))) is same
    assert visitor_of({"type": "http", "client": None, "headers": []}) == ""
