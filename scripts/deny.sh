#!/usr/bin/env bash
# cargo-deny over the dependencies: licences, bans and sources always, advisories where their database is here or can be
# fetched. Left out with a word where cargo-deny is not installed.
set -euo pipefail
cd "$(dirname "$0")/.."
CARGO=${CARGO:-cargo}

if ! $CARGO deny --version >/dev/null 2>&1; then
    echo "make: dependencies are not checked: no cargo-deny here (cargo install --locked cargo-deny)"
    exit 0
fi
# Duplicates are counted, not listed: `cargo deny check bans` lists them.
$CARGO deny --locked --log-level error check --hide-inclusion-graph bans licenses sources
duplicates=$($CARGO deny --locked --log-level warn check --hide-inclusion-graph bans 2>&1 | grep -c 'found [0-9]* duplicate entries' || true)
echo "make: $duplicates crates are there in more than one version"
if fetched=$($CARGO deny --locked --log-level error fetch db 2>&1); then
    $CARGO deny --locked --log-level error check --disable-fetch --hide-inclusion-graph advisories
elif compgen -G "${CARGO_HOME:-$HOME/.cargo}/advisory-dbs/*/" >/dev/null; then
    echo "make: the database of advisories cannot be updated; checking with the one that is here"
    $CARGO deny --locked --offline --log-level error check --disable-fetch --hide-inclusion-graph advisories
else
    echo "make: advisories are not checked: their database is not here and cannot be fetched ($(grep -m 1 -v '^ *$' <<<"$fetched"))"
fi
