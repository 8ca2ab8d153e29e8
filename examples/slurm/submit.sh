#!/bin/bash
# One Slurm array task per participant, then one job for the group level.
#   submit.sh BIDS_DIR OUT_DIR [options of 'hyps-bids … participant']
# Run it again to redo what is missing. README.md beside it explains the variables.
set -eo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,4s/^# //p' "$0" >&2
    exit 64
fi
bids_dir=$(cd "$1" && pwd)
if ! compgen -G "$bids_dir/sub-*/" > /dev/null; then
    echo "submit.sh: $bids_dir: no sub-* folders; name a BIDS dataset" >&2
    exit 18
fi
mkdir -p "$2/logs/slurm"
out_dir=$(cd "$2" && pwd)
shift 2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
logs=$out_dir/logs/slurm
list=$(mktemp "$logs/participants-XXXXXXXX.txt")

# done scans have a QC sidecar, failed ones do not; the report comes last
for folder in "$bids_dir"/sub-*/; do
    subject=$(basename "$folder")
    images=$(cd "$folder" && find . -path '*/anat/*_T1w.nii*')
    if [ -z "$images" ]; then continue; fi
    todo=${HYPS_ALL:-}
    while read -r image; do
        [ -e "$out_dir/$subject/${image%_T1w.nii*}_seg-hippocampus_qc.json" ] || todo=1
    done <<< "$images"
    [ -s "$out_dir/$subject.html" ] || todo=1
    if [ -n "$todo" ]; then echo "$subject" >> "$list"; fi
done

read -ra site <<< "${HYPS_SBATCH:-}"
total=$(wc -l < "$list")
echo "participants to do: $total ($list)"
# arrays are no longer than the cluster allows: several, if there are more participants
longest=$(scontrol show config | awk '$1 == "MaxArraySize" {print $3 - 1}')
after=
for ((offset = 0; offset < total; offset += longest)); do
    count=$((total - offset < longest ? total - offset : longest))
    job=$(sbatch --parsable --job-name=hyps-participant \
        --array="1-$count%${HYPS_MAX_TASKS:-50}" --output="$logs/%x_%A_%a.out" \
        "${site[@]}" "$here/job.sbatch" "$bids_dir" "$out_dir" participant "$list" "$offset" "$@")
    echo "participant level: job ${job%%;*}, tasks 1-$count"
    after+=:${job%%;*}
done

# afterany: scans that failed are listed in the group's tables
# as the shell would read them: formulas have quotes
eval "options=(${HYPS_GROUP_OPTIONS:-})"
job=$(sbatch --parsable --job-name=hyps-group --output="$logs/%x_%j.out" \
    ${after:+--dependency="afterany$after"} \
    "${site[@]}" "$here/job.sbatch" "$bids_dir" "$out_dir" group "${options[@]}")
echo "group level: job ${job%%;*}"
