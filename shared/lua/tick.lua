--- A worker's pulse: renew its lease, reap the dead, find strays, announce changes, release.
-- Needs    strays, release
--
-- KEYS[1]  P gate    hash
-- ARGV[1]  P         ARGV[2]  worker      ARGV[3]  slots      ARGV[4]  concurrency
-- ARGV[5]  lease_ms  ARGV[6]  run id whose facts this worker has told again, or ''
-- ARGV[7]  OUTCOMES_MAX      ARGV[8]  EVENTS_MAX      ARGV[9]  '1': Graph cannot be reached, '2': no
--          claim begins on a list of suppressions this old
-- ARGV[10] how many entries in hand follow; then those entries, then the jobs in hand
-- Reads    P ready, P job:<id>, P sender:<id>, P off
-- Writes   P workers, P slots, P told, P ready, P changed, P events, P outcomes, P low, P turns,
--          P timers, P job:<id>, P job:<id>:states, P job:<id>:again, P sender:<id>:jobs, P minute:<n>
-- Returns  {ok | wiped, now_ms, run, held_ms, off, next timer, stop jobs, reaped workers, requeued}
-- Repeat   gated: at most once in 500 ms
-- Cost     O(64 + entries in hand + workers)
local worker, lease = ARGV[2], num(ARGV[5])
local g = call('HMGET', G, 'born', 'run', 'gated_at', 'calm_until', 'hold_until', 'hold_at', 'hold_strict',
               'flushed_at', 'off')
local run = g[2] or ''
call('ZADD', P .. 'workers', int(now), worker)
call('HSET', P .. 'slots', worker, ARGV[3])
if not g[1] then return {'wiped', int(now), run, '0', '0', '0', {}, {}, '0'} end
if ARGV[6] ~= '' then call('HSET', P .. 'told', worker, ARGV[6]) end
local hold_until = num(g[5])
if hold_until > now + lease then hold_until = now + lease; call('HSET', G, 'hold_until', int(hold_until)) end
if hold_until > now then
  local all, late = true, false
  local held_by = call('ZRANGEBYSCORE', P .. 'workers', int(num(g[6]) - lease), '+inf', 'WITHSCORES', 'LIMIT', 0, 1000)
  for i = 1, #held_by, 2 do
    if call('HGET', P .. 'told', held_by[i]) ~= run then
      all = false
      -- A sign since the hold began: he lives and is at it, restoring a job perhaps.
      late = late or num(held_by[i + 1]) >= math.max(now - lease, num(g[6]))
    end
  end
  if all and g[7] ~= '1' then
    hold_until = 0
    call('HSET', G, 'hold_until', '0')
  elseif late and now < num(g[6]) + 5 * lease then
    -- One lease is for the dead. Who lives is waited for, five leases at most.
    hold_until = now + lease
    call('HSET', G, 'hold_until', int(hold_until), 'calm_until', int(math.max(num(g[4]), hold_until + lease)))
  end
end
local held = math.max(0, hold_until - now)
local reaped, requeued = {}, 0
local count_in_hand = num(ARGV[10])
local gated = num(g[3])
if now - gated >= 500 or gated > now then
  local calm = num(g[4])
  -- The server was away or its clock jumped: every sign is old and nobody is dead.
  if gated > 0 and (now - gated > lease / 2 or gated > now) then calm = now + lease end
  if calm > now + 2 * lease then calm = now + lease end
  if calm <= now and held == 0 then
    -- Who froze just before it read, and was forgotten meanwhile, is a consumer without a sign. It
    -- gets one, which ends as everybody's does: nothing else would take over what it was given.
    local known, consumers = pcall(call, 'XINFO', 'CONSUMERS', P .. 'ready', 'workers')
    for _, consumer in ipairs(known and consumers or {}) do
      call('ZADD', P .. 'workers', 'NX', int(now), consumer[2])
    end
    for _, dead in ipairs(call('ZRANGEBYSCORE', P .. 'workers', '-inf', int(now - lease), 'LIMIT', 0, 4)) do
      for _, p in ipairs(call('XPENDING', P .. 'ready', 'workers', '-', '+', 256, dead)) do requeue(p[1], 1) end
      if forget(dead) then reaped[#reaped + 1] = dead end
    end
  end
  local slots = 0
  for _, n in ipairs(call('HVALS', P .. 'slots')) do slots = slots + num(n) end
  local full = '0'
  local ok, info = pcall(call, 'INFO', 'memory')
  if ok and type(info) == 'string' then
    local used, most = num(string.match(info, 'used_memory:(%d+)')), num(string.match(info, 'maxmemory:(%d+)'))
    if most > 0 and used > 0.85 * most then full = '1' end
  end
  call('HSET', G, 'gated_at', int(now), 'calm_until', int(calm), 'cap', int(math.floor(1.5 * slots)),
       'concurrency', ARGV[4], 'outcomes_max', ARGV[7], 'events_max', ARGV[8], 'lease', int(lease),
       'full', full, 'unreachable', ARGV[9])
end
if held == 0 then
  local mine = {}
  for i = 11, 10 + count_in_hand do mine[ARGV[i]] = true end
  for _, p in ipairs(call('XPENDING', P .. 'ready', 'workers', 'IDLE', 2000, '-', '+', num(ARGV[3]) + 64, worker)) do
    if not mine[p[1]] then requeue(p[1], 1); requeued = requeued + 1 end
  end
end
if now - num(g[8]) >= 100 or num(g[8]) > now then
  call('HSET', G, 'flushed_at', int(now))
  for _, id in ipairs(call('SPOP', P .. 'changed', 64)) do
    if call('EXISTS', job_key(id)) == 1 then note(id, false) end
  end
end
release(64)
local off = is_off(g[9])
local stop = {}
for i = 11 + count_in_hand, #ARGV do
  local h = call('HMGET', job_key(ARGV[i]), 'state', 'sender', 'expires_ms')
  local s = h[2] and call('HMGET', sender_key(h[2]), 'blocked_until', 'paused') or {}
  if off or (h[1] ~= 'running' and h[1] ~= 'queued') or s[2] == '1' or num(s[1]) > now
     or (num(h[3]) > 0 and num(h[3]) <= now) then
    stop[#stop + 1] = ARGV[i]
  end
end
local timer = call('ZRANGE', P .. 'timers', 0, 0, 'WITHSCORES')
return {'ok', int(now), run, int(held), off and '1' or '0', timer[2] and int(num(timer[2])) or '0', stop, reaped,
        int(requeued)}
