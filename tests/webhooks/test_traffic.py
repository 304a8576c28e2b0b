"""Who may send when: the arithmetic of lanes, without a network."""

from hypothesis import given
from hypothesis import strategies as st

from fluxserve.core.deliveries import Delivery
from fluxserve.webhooks import traffic as traffic_room
from fluxserve.webhooks.traffic import Lanes, Traffic
from tests.webhooks.material import a_delivery

LANES = Lanes(at_once=4, per_host=3, per_troubled_host=1, line_max=2)


def to(host: str) -> Delivery:
    return a_delivery(url=f"https://{host}/hook")


def test_a_line_has_an_end_and_the_rest_is_put_off_one_after_another() -> None:
    traffic = Traffic(LANES)
    waits = [traffic.admit(to("a")) for _ in range(8)]
    assert waits[:5] == [0.0] * 5  # three may send, two may wait
    assert waits[5:] == sorted(waits[5:])
    assert waits[5] > 0
    assert traffic.held == 5


def test_one_host_never_takes_every_slot() -> None:
    traffic = Traffic(LANES)
    for host in ("a", "a", "a", "a", "b"):
        traffic.admit(to(host))
    started = [traffic.next() for _ in range(5)]
    hosts = [delivery.url for delivery in started if delivery]
    assert hosts.count("https://a/hook") == 3
    assert hosts.count("https://b/hook") == 1
    assert started[-1] is None


def test_a_failed_host_loses_its_line_and_gets_it_back_with_a_success() -> None:
    traffic = Traffic(LANES)
    for _ in range(5):
        traffic.admit(to("a"))
    first, second = traffic.next(), traffic.next()
    assert first is not None
    assert second is not None
    traffic.done(first, is_good=False)
    assert len(traffic.spill()) == 3  # one is sending, and one is all it may have
    assert traffic.admit(to("a")) >= LANES.put_off_troubled_s
    traffic.done(second, is_good=True)
    assert traffic.admit(to("a")) == 0.0


def test_user_names_and_letters_do_not_make_another_host() -> None:
    traffic = Traffic(LANES)
    for url in ("https://u:p@a/1", "https://A/2", "https://a/3"):
        traffic.admit(a_delivery(url=url))
    assert traffic.held == 3
    assert len(traffic._hosts) == 1


def test_only_so_many_troubled_hosts_are_remembered(monkeypatch: object) -> None:
    traffic = Traffic(LANES)
    for number in range(traffic_room.TROUBLED_MAX + 10):
        traffic.admit(to(f"h{number}"))
        delivery = traffic.next()
        assert delivery is not None
        traffic.done(delivery, is_good=False)
    assert len(traffic._troubled) == traffic_room.TROUBLED_MAX
    assert not traffic._hosts


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([True, False, None]))))
def test_counts_stay_true_whatever_happens(steps: list[tuple[str, bool | None]]) -> None:
    traffic = Traffic(LANES)
    under_way: list[Delivery] = []
    for host, is_good in steps:
        traffic.admit(to(host))
        while (delivery := traffic.next()) is not None:
            under_way.append(delivery)
        assert traffic.sending == len(under_way) <= LANES.at_once
        for name in "abc":
            assert sum(name == d.url[8] for d in under_way) <= LANES.per_host
        if under_way and is_good is not True:
            traffic.done(under_way.pop(0), is_good=is_good)
            traffic.spill()
    while under_way:
        traffic.done(under_way.pop(), is_good=True)
        while (delivery := traffic.next()) is not None:
            under_way.append(delivery)
    assert traffic.held == 0
    assert not traffic._hosts
