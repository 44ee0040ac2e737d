"""Small caches on their way from one folder to another, each with a plan made before it goes."""

from pathlib import Path

from cache_tools import Cache, open_cache
from cache_tools.settings import Part
from cache_tools.sharing.listing import read_listing
from cache_tools.sharing.locations.folder import Folder
from cache_tools.sharing.locations.location import Location
from cache_tools.sharing.plan import Plan, plan
from cache_tools.sharing.retry import RetryPolicy
from cache_tools.sharing.transfer import Transfer
from helpers.small_caches import NUMERICS, commit, prepare_cache, random_shard, shard_keys, small_recipe

RECIPE = small_recipe()
POLICY = RetryPolicy(retries=0)
KEYS = shard_keys(RECIPE)


def built(root: Path, numerics: dict[str, str] = NUMERICS, seed: int = 0, start_seed: int = 0) -> Cache:
    """A complete cache. With another seed its teacher said something else of the same tokens; or began otherwise."""
    prepare_cache(root, RECIPE, start_seed=start_seed)
    for key in KEYS:
        commit(root, RECIPE, key, random_shard(RECIPE, *key, seed), numerics)
    return open_cache(root)


def planned(cache: Cache, to: Location, part: Part | None = None) -> Plan:
    return plan(read_listing(Folder(cache.root), POLICY), to, part or Part(), POLICY)


def transfer(planned: Plan) -> Transfer:
    return Transfer(planned, POLICY, lambda size: None)


def carry_out(planned: Plan, to: Location) -> None:
    with to.staging():
        transfer(planned).run()
