"""What columns are called in tables of single vehicles (`micro`) and of road links (`macro`): standard field -> names people give it.

Names are written in words; `columns.py` makes `gps_speed`, `GpsSpeed` or `GPS_SPEED` of "gps speed", and puts units behind them. A share's
names are those of its vehicles: `share_passenger_car_pct` is that of Passenger Car. `OTHERS` are columns that mean none of the fields. No
name stands twice in a kind of table; a test says so.
"""

from __future__ import annotations

MICRO: dict[str, tuple[str, ...]] = {
    "time_sec": (
        "time sec", "time", "t", "timestamp", "elapsed time", "seconds", "sec", "clock", "time step", "trip time", "log time", "sim time",
        "时间", "时刻", "秒", "采样时间", "时间戳", "行驶时间", "记录时间", "累计时间", "工况时间", "秒数", "shijian", "shike",
    ),
    "speed_kph": (
        "speed kph", "speed", "v", "velocity", "spd", "vehicle speed", "veh spd", "gps speed", "obd speed", "instantaneous speed", "vss",
        "wheel speed", "速度", "车速", "瞬时速度", "行驶速度", "实时车速", "gps速度", "逐秒速度", "时速", "当前速度", "sudu", "chesu",
    ),
    "acceleration_mps2": (
        "acceleration mps2", "acceleration", "acc", "accel", "a", "longitudinal acceleration", "dv dt", "accel rate", "veh acc", "acc x",
        "ax", "long acc", "加速度", "瞬时加速度", "纵向加速度", "行驶加速度", "逐秒加速度", "车辆加速度", "前向加速度", "加速", "jiasudu",
    ),
    "grade_pct": (
        "grade pct", "grade", "slope", "gradient", "road grade", "road slope", "road gradient", "incline", "longitudinal grade", "rd grd",
        "inclination", "坡度", "道路坡度", "路面坡度", "纵坡", "纵坡度", "坡率", "道路纵坡", "路坡", "坡度百分数", "podu", "daolu podu",
    ),
}  # fmt: skip
MACRO: dict[str, tuple[str, ...]] = {
    "link_id": (
        "link id", "link", "link no", "road id", "segment id", "section id", "edge id", "arc id", "link number", "link code", "way id",
        "seg no", "路段编号", "路段id", "路段号", "道路编号", "路段", "编号", "路链编号", "路段代码", "路段标识", "luduan bianhao",
        "luduan id",
    ),
    "link_length_km": (
        "link length km", "link length", "length", "len", "road length", "segment length", "distance", "dist", "section length", "link len",
        "edge length", "seg len", "路段长度", "长度", "道路长度", "里程", "路长", "路段里程", "路段距离", "段长", "changdu",
        "luduan changdu",
    ),
    "traffic_flow_vph": (
        "traffic flow vph", "traffic flow", "flow", "volume", "traffic volume", "vol", "q", "hourly volume", "flow rate", "link flow",
        "throughput", "车流量", "流量", "交通量", "小时流量", "交通流量", "小时交通量", "断面流量", "路段流量", "liuliang", "cheliuliang",
    ),
    "avg_speed_kph": (
        "avg speed kph", "average speed", "avg speed", "mean speed", "link speed", "travel speed", "avg spd", "v avg", "mean velocity",
        "speed", "space mean speed", "平均速度", "平均车速", "路段速度", "路段平均速度", "均速", "行程速度", "路段车速", "运行速度", "速度",
        "pingjun sudu",
    ),
}  # fmt: skip
SHARES: dict[str, tuple[str, ...]] = {
    "Motorcycle": (
        "motorcycle", "mc", "moto", "motorbike", "motorcycles", "type 11", "摩托车", "摩托", "两轮车", "二轮摩托", "摩托类", "motuoche",
    ),
    "Passenger Car": (
        "passenger car", "pc", "car", "cars", "sedan", "type 21", "小汽车", "轿车", "小客车", "私家车", "乘用车", "xiaoqiche", "jiaoche",
    ),
    "Passenger Truck": (
        "passenger truck", "pt", "suv", "pickup", "passenger trucks", "type 31", "皮卡", "越野车", "客用卡车", "suv车", "多用途车", "pika",
    ),
    "Light Commercial Truck": (
        "light commercial truck", "lct", "lcv", "van", "light truck", "type 32", "轻型货车", "轻卡", "小货车", "轻型商用车", "面包车",
        "qingka",
    ),
    "Intercity Bus": (
        "intercity bus", "coach", "coaches", "intercity", "ib", "type 41", "长途客车", "城际客车", "长途大巴", "旅游客车", "城际大巴",
        "changtu keche",
    ),
    "Transit Bus": (
        "transit bus", "city bus", "urban bus", "transit", "tb", "type 42", "公交车", "公交", "城市公交", "公共汽车", "城市客车",
        "gongjiaoche",
    ),
    "School Bus": (
        "school bus", "student bus", "school buses", "school", "sb", "type 43", "校车", "学生校车", "学校班车", "学生班车", "校巴",
        "xuesheng xiaoche",
    ),
    "Refuse Truck": (
        "refuse truck", "garbage truck", "waste truck", "trash truck", "refuse", "rt", "type 51", "垃圾车", "环卫车", "清运车",
        "垃圾清运车", "lajiche",
    ),
    "Single Unit Short-haul Truck": (
        "single unit short haul truck", "sush", "su short", "single unit short", "rigid short haul", "type 52", "短途单体货车", "单体短途",
        "短途货车", "短途整体货车", "短途单体", "duantu danti",
    ),
    "Single Unit Long-haul Truck": (
        "single unit long haul truck", "sulh", "su long", "single unit long", "rigid long haul", "type 53", "长途单体货车", "单体长途",
        "长途货车", "长途整体货车", "长途单体", "changtu danti",
    ),
    "Motor Home": (
        "motor home", "mh", "rv", "camper", "recreational vehicle", "motor homes", "type 54", "房车", "旅居车", "露营车", "宿营车",
        "fangche",
    ),
    "Combination Short-haul Truck": (
        "combination short haul truck", "csh", "comb short", "combination short", "short haul tractor", "type 61", "短途半挂车", "短途半挂",
        "短途拖挂", "短途组合货车", "短途牵引车", "duantu bangua",
    ),
    "Combination Long-haul Truck": (
        "combination long haul truck", "clh", "comb long", "combination long", "long haul tractor", "type 62", "长途半挂车", "长途半挂",
        "长途拖挂", "长途组合货车", "长途牵引车", "changtu bangua",
    ),
}  # fmt: skip
OTHERS: dict[str, tuple[str, ...]] = {
    "micro": (
        "vehicle id", "vin", "plate", "driver", "lat", "lon", "altitude", "heading", "engine rpm", "throttle", "fuel rate", "gear",
        "coolant temp", "odometer", "comment", "车牌号", "驾驶员", "经度", "纬度", "海拔", "发动机转速", "油耗", "备注", "温度", "湿度",
        "挡位", "水温", "油门开度", "方向角", "车重", "序号", "车辆id", "co2 ppm", "nox ppm",
    ),
    "macro": (
        "city", "road name", "lanes", "direction", "date", "weather", "capacity", "density", "speed limit", "road class", "from node",
        "to node", "detector", "delay", "remark", "region", "城市", "区县", "道路名称", "车道数", "方向", "日期", "天气", "通行能力",
        "饱和度", "密度", "限速", "道路等级", "起点", "终点", "观测员", "检测器", "延误", "备注",
    ),
}  # fmt: skip
UNITS: dict[str, tuple[str, ...]] = {
    "time_sec": ("s", "sec", "秒"),
    "speed_kph": ("km/h", "kph", "公里/小时"),
    "acceleration_mps2": ("m/s2", "mps2", "米每二次方秒"),
    "grade_pct": ("%", "pct", "百分比"),
    "link_length_km": ("km", "公里", "千米"),
    "traffic_flow_vph": ("veh/h", "vph", "辆/小时"),
    "avg_speed_kph": ("km/h", "kph", "公里/小时"),
}
"""What stands behind a field's name. Only units that the standard field is in: `speed (m/s)` would need another mapping."""


def share_field(vehicle: str) -> str:
    """
    >>> share_field("Single Unit Short-haul Truck")
    'share_single_unit_short_haul_truck_pct'
    """
    return f"share_{vehicle.lower().replace(' ', '_').replace('-', '_')}_pct"


FIELDS: dict[str, dict[str, tuple[str, ...]]] = {
    "micro": MICRO, "macro": {**MACRO, **{share_field(vehicle): names for vehicle, names in SHARES.items()}},
}  # fmt: skip
"""kind of table -> standard field -> its names"""
