"""Country names, as shops write them, to ISO 3166-1 alpha-2 codes.

Exact matches only: a name that is in no table is reported, since a parcel sent to a guessed country is lost.
"""

from collections.abc import Mapping

# Everyday names that ISO 3166 spells differently.
_ALIASES = {
    "bolivia": "BO",
    "brunei": "BN",
    "burma": "MM",
    "cape verde": "CV",
    "czech republic": "CZ",
    "eire": "IE",
    "england": "GB",
    "falkland islands": "FK",
    "great britain": "GB",
    "holland": "NL",
    "iran": "IR",
    "ivory coast": "CI",
    "laos": "LA",
    "macau": "MO",
    "macedonia": "MK",
    "micronesia": "FM",
    "moldova": "MD",
    "north korea": "KP",
    "northern ireland": "GB",
    "palestine": "PS",
    "republic of ireland": "IE",
    "republic of korea": "KR",
    "rsa": "ZA",
    "russia": "RU",
    "scotland": "GB",
    "south korea": "KR",
    "swaziland": "SZ",
    "syria": "SY",
    "tanzania": "TZ",
    "the netherlands": "NL",
    "turkey": "TR",
    "u.k.": "GB",
    "u.s.a.": "US",
    "uae": "AE",
    "uk": "GB",
    "united kingdom": "GB",
    "united states": "US",
    "vatican city": "VA",
    "venezuela": "VE",
    "vietnam": "VN",
    "wales": "GB",
}

# Names that occur in exports and do not say which country: the reason, for the report.
_NOT_A_COUNTRY = {
    "channel islands": "Jersey (JE) or Guernsey (GG)",
    "european community": "a group of countries",
    "korea": "South Korea (KR) or North Korea (KP)",
    "unspecified": "no country given",
    "west indies": "a group of countries",
}


class CountryError(ValueError):
    """A name does not say which country is meant."""


def country_code(name: str, aliases: Mapping[str, str] | None = None) -> str:
    """ISO 3166-1 alpha-2 code of a country's English name or code; CountryError when it has none.

    `aliases` maps further names, in lower case, to codes; it wins over everything else.
    """
    from iso3166 import countries

    wanted = " ".join(name.split()).casefold()
    code = (aliases or {}).get(wanted) or _ALIASES.get(wanted)
    if code:
        return code
    if wanted in _NOT_A_COUNTRY:
        raise CountryError(f"{name!r} is not one country: {_NOT_A_COUNTRY[wanted]}")
    found = None if wanted.isdigit() else countries.get(wanted, None)
    if found is None:
        raise CountryError(f"{name[:80]!r} is not a country's name" if wanted else "no country given")
    return found.alpha2
