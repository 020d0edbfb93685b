"""Targets for tests: real ones, and any that the rule allows."""

import unicodedata
from typing import Final

from hypothesis import strategies as st

from streamer.protocol.topics import is_target

SAMPLES: Final = (
    *("005930", "M&M.NS", "BTC/USDT:USDT", "NIFTY 50", "$DJI", "X:BTCUSD", "^GSPC", "ES=F"),
    *(
        "삼성전자",
        "币安人生USDT",
        "auth0|5f7c",
        "a+b@c.d",
        "L'Oréal (OR.PA)",
        "50%",
        "한글:A:price",
    ),
)
"""As vendors, exchanges and identity providers write them."""

targets: Final = st.one_of(
    st.sampled_from(SAMPLES),
    st.text(
        st.characters(min_codepoint=33, max_codepoint=126, exclude_characters='*?[]{}\\"'),
        min_size=1,
        max_size=64,
    ),
    st.text(st.characters(categories=["L", "M", "Nd", "P", "S"]), min_size=1, max_size=24)
    .map(lambda text: unicodedata.normalize("NFC", text))
    .filter(is_target),
)
