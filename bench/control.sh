#!/usr/bin/env bash
# The control plane under load: what a load generator's suite calls to start, stop and describe it.
#   control.sh up [etcd apiserver scheduler kcm] | down [...] | wipe | flags | pids | size
# KELSON: the binary (target/release/kelson). DIR: where everything is kept (/tmp/kelson-bench). PORT: the API server's (26443).
# QPS: the clients' limit of requests a second, where one is wanted.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
KELSON=${KELSON:-$here/target/release/kelson} DIR=${DIR:-/tmp/kelson-bench} PORT=${PORT:-26443}
TOKEN=bench-token
mkdir -p "$DIR/pki"

prepare() {
  [[ -f $DIR/pki/sa.key ]] && return
  openssl genrsa -out "$DIR/pki/sa.key" 2048 2>/dev/null
  openssl rsa -in "$DIR/pki/sa.key" -pubout -out "$DIR/pki/sa.pub" 2>/dev/null
  echo "$TOKEN,bench,1,system:masters" > "$DIR/pki/tokens.csv"
  cat > "$DIR/kubeconfig" <<Y
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:$PORT", insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: $TOKEN}}]
contexts: [{name: d, context: {cluster: c, user: u}}]
current-context: d
Y
}
start() { # NAME WORDS...
  local name=$1; shift
  setsid "$@" >> "$DIR/$name.log" 2>&1 &
  echo $! > "$DIR/$name.pid"
}
stop() {
  [[ -f $DIR/$1.pid ]] || return 0
  local pid; pid=$(cat "$DIR/$1.pid")
  kill "$pid" 2>/dev/null || true
  for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  rm -f "$DIR/$1.pid"
}
await() { # URL
  for _ in $(seq 600); do curl -sk -H "Authorization: Bearer $TOKEN" "$1" | grep -q ok && return; sleep 0.05; done
  echo "$1 does not answer" >&2; exit 1
}
limits() { [[ -n ${QPS:-} ]] && echo "--kube-api-qps=$QPS --kube-api-burst=$QPS" || true; }
up() {
  prepare
  for part; do case $part in
    etcd) ;; # the store is embedded
    apiserver)
      start apiserver "$KELSON" kube-apiserver --data-dir="$DIR/store" --cert-dir="$DIR/pki" --bind-address=127.0.0.1 --secure-port="$PORT" \
        --authorization-mode=Node,RBAC --token-auth-file="$DIR/pki/tokens.csv" --service-cluster-ip-range=10.96.0.0/16 \
        --allow-privileged=true --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$DIR/pki/sa.pub" \
        --service-account-signing-key-file="$DIR/pki/sa.key"
      await "https://127.0.0.1:$PORT/readyz" ;;
    scheduler)
      # shellcheck disable=SC2046
      start scheduler "$KELSON" kube-scheduler --kubeconfig="$DIR/kubeconfig" --leader-elect=false --secure-port=26259 $(limits)
      await https://127.0.0.1:26259/healthz ;;
    kcm)
      # shellcheck disable=SC2046
      start kcm "$KELSON" kube-controller-manager --kubeconfig="$DIR/kubeconfig" --leader-elect=false --secure-port=26257 \
        --service-account-private-key-file="$DIR/pki/sa.key" $(limits)
      await https://127.0.0.1:26257/healthz ;;
  esac; done
}
act=$1; shift
all="kcm scheduler apiserver"
case $act in
  up) up "${@:-apiserver}" ;;
  down) for part in ${*:-$all}; do stop "$part"; done ;;
  wipe) for part in $all; do stop "$part"; done; rm -rf "$DIR/store" ;;
  flags) echo "--server https://127.0.0.1:$PORT --token $TOKEN --insecure" ;;
  pids) for part in $all; do [[ -f $DIR/$part.pid ]] && printf -- '--pid %s=@%s ' "$part" "$DIR/$part.pid"; done; echo ;;
  size) du -sb "$DIR/store" | cut -f1 ;;
  *) echo "unknown: $act" >&2; exit 2 ;;
esac
