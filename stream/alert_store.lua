#!lua name=aewatch_v1
-- The one way in which a sensor's alarm state and its alerts change: all of it or nothing.
--
-- KEYS  1 hash of the sensor   2 stream of alerts   3 hash of open episodes   4 sorted set of sensors
-- ARGV  1 version of the state that the caller worked on ("0": none yet)
--       2 "advance" (windows were applied) or "operate" (an operator's command)
--       3 position of the last continuous window, 4 of the last hit: 38 digits each, or empty
--       5 state (JSON)   6 sensor id   7 end of the last window, s since 1970 (empty: leave as it is)
--       8 channel   9 how many alerts to keep in the stream, at least (0: all)
--      10 number of further hash fields, then name and value of each
--         number of alerts, then of each: alert (JSON), "open" | "close" | "none", episode, condition, transition,
--         priority
-- Answer {"applied", version, {stream id of each alert}}, or, with nothing changed,
--        {"conflict" | "stale", version, state}: somebody else went on from that version, or these windows are no news.
--
-- A change of arguments or meaning needs a new number in both names: workers of two releases run side by side.

local FIXED = 10
local MAX_FIELDS = 1000 -- what one HSET may be given is limited

local TYPES = { 'hash', 'stream', 'hash', 'zset' }

local function refuse(text)
  return redis.error_reply('ERR aewatch_apply_v1: ' .. text)
end

local function whole(text)
  if text and string.find(text, '^%d+$') then
    return tonumber(text)
  end
end

local function is_position(text)
  return text == '' or (#text == 38 and string.find(text, '^%d+$') ~= nil)
end

-- Digits of one length compare as text; as numbers they would not fit a double.
local function advances(windows, hits, stored_windows, stored_hits)
  return windows >= stored_windows and hits >= stored_hits and (windows > stored_windows or hits > stored_hits)
end

local function entries_added(stream)
  if redis.call('EXISTS', stream) == 0 then
    return 0
  end
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'entries-added' then
      return info[i + 1]
    end
  end
  return 0
end

local function apply(keys, args)
  if #keys ~= 4 then
    return refuse('4 keys are wanted, ' .. #keys .. ' were given')
  end
  local field_count = whole(args[FIXED])
  if field_count and field_count > MAX_FIELDS then
    return refuse(field_count .. ' hash fields, at most ' .. MAX_FIELDS .. ' are allowed')
  end
  local alert_count = field_count and whole(args[FIXED + 2 * field_count + 1])
  if not alert_count or #args ~= FIXED + 2 * field_count + 1 + 6 * alert_count then
    return refuse(#args .. ' arguments do not match the counts of fields and alerts among them')
  end
  local expected, mode, windows, hits, state = args[1], args[2], args[3], args[4], args[5]
  local keep = whole(args[9])
  if not whole(expected) or not keep then
    return refuse('version and number of alerts to keep must be whole numbers')
  end
  if mode ~= 'advance' and mode ~= 'operate' then
    return refuse('mode must be advance or operate')
  end
  if not is_position(windows) or not is_position(hits) then
    return refuse('a position has 38 digits or is empty')
  end
  if args[7] ~= '' and not string.find(args[7], '^%d+%.?%d*$') then
    return refuse('the end of the last window must be a decimal number or empty')
  end
  -- A command that failed half way would leave the first half done, so nothing may fail below.
  for i, wanted in ipairs(TYPES) do
    local found = redis.call('TYPE', keys[i]).ok
    if found ~= 'none' and found ~= wanted then
      return refuse('key ' .. keys[i] .. ' holds a ' .. found .. ', wanted is a ' .. wanted)
    end
  end

  local stored = redis.call('HMGET', keys[1], 'version', 'state', 'windows_position', 'hits_position')
  local version = stored[1] or '0'
  local answer = { 'conflict', version, stored[2] or '' }
  if version ~= expected then
    return answer
  end
  if mode == 'advance' and not advances(windows, hits, stored[3] or '', stored[4] or '') then
    answer[1] = 'stale'
    return answer
  end

  local hash = { 'state', state, 'windows_position', windows, 'hits_position', hits }
  for i = FIXED + 1, FIXED + 2 * field_count do
    hash[#hash + 1] = args[i]
  end
  redis.call('HSET', keys[1], unpack(hash))
  local next_version = redis.call('HINCRBY', keys[1], 'version', 1)
  if args[7] ~= '' then
    redis.call('ZADD', keys[4], args[7], args[6])
  end

  local ids = {}
  local number = alert_count > 0 and entries_added(keys[2]) or 0
  for i = 1, alert_count do
    local at = FIXED + 2 * field_count + 2 + 6 * (i - 1)
    local alert, effect, episode = args[at], args[at + 1], args[at + 2]
    local entry = {
      'n', number + i, 'sensor', args[6], 'condition', args[at + 3], 'transition', args[at + 4],
      'priority', args[at + 5], 'alert', alert,
    }
    if keep > 0 then
      ids[i] = redis.call('XADD', keys[2], 'MAXLEN', '~', keep, '*', unpack(entry))
    else
      ids[i] = redis.call('XADD', keys[2], '*', unpack(entry))
    end
    if effect == 'open' then
      redis.call('HSET', keys[3], episode, alert)
    elseif effect == 'close' then
      redis.call('HDEL', keys[3], episode)
    end
    redis.call('PUBLISH', args[8], alert)
  end
  return { 'applied', tostring(next_version), ids }
end

redis.register_function('aewatch_apply_v1', apply)
