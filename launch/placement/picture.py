"""A placement as lines for a terminal: what it is worth, where the time goes, who sits where."""

from collections.abc import Iterator, Sequence

from ..topology.cpu_list import format_numbers
from ..topology.demand import Traffic
from ..topology.placement import Placement, Seat
from .hosts import natural

_MOST_HOSTS = 32


def lines_of(found: Placement, traffic: Sequence[Traffic]) -> list[str]:
    """Everything that there is to say."""
    return [*_traffic(found, traffic), worth(found), *_hosts(found)]


def worth(found: Placement) -> str:
    """What the placement is worth, in a line."""
    if not found.costs:
        return "placement   one rank, or ranks that exchange nothing: any seat is as good"
    seconds = f"{_ms(found.seconds)} of communication a step against {_ms(found.rank_order_s)} in rank order"
    sure = "no placement is better" if found.exact else f"none is below {_ms(found.bound_s)}"
    use = f"{found.gain:.2f}x less" if found.is_worth_it else "as good as rank order"
    return f"placement   {use}, by the model: {seconds}; {sure}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.3g} ms"


def _traffic(found: Placement, traffic: Sequence[Traffic]) -> Iterator[str]:
    if not found.costs:
        return
    yield f"{'exchange of a step':<38}{'MiB':>10}{'number':>8}{'counts':>8}{'in order':>12}{'placed':>12}"
    for each, cost in zip(traffic, found.costs, strict=True):
        yield (
            f"{each.name:<38}{each.payload_bytes / 2**20:>10,.4g}{each.num_collectives:>8,.4g}{each.weight:>8.1f}"
            f"{_ms(cost.rank_order_s):>12}{_ms(cost.seconds):>12}"
        )


def _hosts(found: Placement) -> Iterator[str]:
    seats: dict[str, list[Seat]] = {}
    for seat in found.seats:
        seats.setdefault(seat.host, []).append(seat)
    width = min(40, max(map(len, seats)))
    for host, those in sorted(seats.items(), key=lambda item: natural(item[0]))[:_MOST_HOSTS]:
        in_order = sorted(those, key=lambda seat: seat.gpu)
        ranks = " ".join(f"{seat.gpu}:{seat.rank}" for seat in in_order)
        cpus = format_numbers(cpu for seat in those for cpu in seat.cpus)
        nics = ",".join(dict.fromkeys(seat.nic for seat in in_order if seat.nic))
        told = "".join(f"  {name} {value}" for name, value in (("cpus", cpus), ("adapters", nics)) if value)
        yield f"host        {host:<{width}}  device:rank {ranks}{told}"
    if len(seats) > _MOST_HOSTS:
        yield f"and {len(seats) - _MOST_HOSTS} hosts more; --out FILE keeps them all"
