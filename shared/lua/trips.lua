--- Count in a job's breaker what webhooks told of messages that were taken: content errors.
-- Needs    ends
--
-- KEYS[1]  P gate    declares the shard's slot
-- ARGV[1]  P         ARGV[2]  job id      ARGV[3]  how many so far, of the whole job
-- ARGV[4]  reason    of most of them
-- Writes   P job:<id>, P sender:<id>:jobs, P outcomes, P events
-- Returns  '1' when the breaker opened
-- Repeat   a job that is paused stays as it is
-- Cost     O(1)
local id, k = ARGV[2], job_key(ARGV[2])
local h = call('HMGET', k, 'state', 'sender', 'expires_ms', 'late', 'late_from', 'trips', 'since',
               'sent', 'failed', 'skipped', 'unknown', 'cancelled')
if not h[1] then return '0' end
local late = math.max(num(h[4]), num(ARGV[3]))
call('HSET', k, 'late', int(late))
local running = (h[1] == 'running' or h[1] == 'queued') and (num(h[3]) == 0 or num(h[3]) > now)
-- Not in a row: webhooks come in no order. Of all outcomes since the last resume it is half.
local total = late - num(h[5]) + num(h[6])
local since = num(h[8]) + num(h[9]) + num(h[10]) + num(h[11]) + num(h[12]) - num(h[7])
if not running or late <= num(h[5]) or total < 50 or total * 2 < since then return '0' end
call('HSET', k, 'by', 'system', 'reason', 'breaker:' .. ARGV[4])
set_state(id, 'paused')
call('ZREM', sender_key(h[2]) .. ':jobs', id)
tell_state(id)
note(id, false)
return '1'
