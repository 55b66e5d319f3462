--- May this account and address try to log in, and how did the last try go?
--
-- KEYS[1]  {v}:login:<account>   hash   failures, their window's end, blocks so far, blocked until
-- KEYS[2]  {v}:login:<address>   hash   failures, their window's end
-- ARGV[1]  '' = may they try? · '0' = it failed · '1' = it went well
-- ARGV[2]  failures of an account   ARGV[3]  window, s   ARGV[4]  failures of an address
-- Returns  s to wait: others have failed meanwhile, and the outcome does not count; 0 = try
-- Repeat   '0' counts again
-- Cost     O(1)
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local window = tonumber(ARGV[3]) * 1000
local function num(x) return tonumber(x or '') or 0 end
local function int(n) return string.format('%.0f', n) end

local function count(key)
  local ends = num(redis.call('HGET', key, 'ends'))
  if ends <= now then redis.call('HSET', key, 'n', '0', 'ends', int(now + window)) end
  local n = redis.call('HINCRBY', key, 'n', 1)
  redis.call('PEXPIRE', key, int(math.max(window, 3600000)))
  return n
end

local wait = num(redis.call('HGET', KEYS[1], 'until')) - now
local address = redis.call('HMGET', KEYS[2], 'n', 'ends')
if num(address[1]) >= tonumber(ARGV[4]) then wait = math.max(wait, num(address[2]) - now) end
if wait > 0 then return math.ceil(wait / 1000) end

if ARGV[1] == '1' then
  redis.call('DEL', KEYS[1])
elseif ARGV[1] == '0' then
  count(KEYS[2])
  if count(KEYS[1]) >= tonumber(ARGV[2]) then
    local blocks = redis.call('HINCRBY', KEYS[1], 'blocks', 1)
    local block = math.min(900, 60 * 2 ^ (blocks - 1)) * 1000
    redis.call('HSET', KEYS[1], 'n', '0', 'until', int(now + block))
  end
end
return 0
