#!/bin/bash
# drain_on_notice.sh aws|gcp: waits until the cloud says that this spot machine will go, then
# drains its Ray node (drain.sh beside this file). Ray itself does not look for such notices.
#
# AWS tells 120 s before, Google 30 s. POLL_S (2), METADATA (the cloud's address) and NOTICE_S may
# be set, which tests do.
set -u

cloud=${1:-}
poll=${POLL_S:-2}
here=$(dirname "$(readlink -f "$0")")

aws_notice() { # IMDSv2: a token first; 404 until there is a notice
    local token
    token=$(curl -sf -m 2 -X PUT -H "X-aws-ec2-metadata-token-ttl-seconds: 300" \
        "$metadata/latest/api/token") || return 1
    curl -sf -m 2 -o /dev/null -H @- "$metadata/latest/meta-data/spot/instance-action" \
        <<<"X-aws-ec2-metadata-token: $token" # not an argument: arguments are seen by all
}

gcp_notice() { # TRUE once the machine is being preempted
    [[ $(curl -sf -m 2 -H "Metadata-Flavor: Google" \
        "$metadata/computeMetadata/v1/instance/preempted") == TRUE ]]
}

case $cloud in
aws) metadata=${METADATA:-http://169.254.169.254} seconds=${NOTICE_S:-110} ;;
gcp) metadata=${METADATA:-http://metadata.google.internal} seconds=${NOTICE_S:-25} ;;
*)
    echo "usage: drain_on_notice.sh aws|gcp" >&2
    exit 2
    ;;
esac
until "${cloud}_notice"; do
    sleep "$poll"
done
echo "$(date -u +%FT%TZ) $cloud takes this machine back: draining, $seconds s"
exec "$here/drain.sh" "$seconds" "spot machine taken back"
